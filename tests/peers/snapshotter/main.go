// soci-snapshotter-grpc, from its root module: the real snapshotter behind a socket, with its own settings.
//
//	soci-snapshotter-grpc --address SOCKET --config FILE --root FOLDER
//
// The program of that name is in a nested module, which module proxies do not have; what it does beyond this is to talk to
// systemd and Kubernetes. Metrics are served as there, on `metrics_address`.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/awslabs/soci-snapshotter/config"
	"github.com/awslabs/soci-snapshotter/fs"
	"github.com/awslabs/soci-snapshotter/metadata"
	"github.com/awslabs/soci-snapshotter/service"
	"github.com/awslabs/soci-snapshotter/service/keychain/dockerconfig"
	"github.com/awslabs/soci-snapshotter/ztoc"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/log"
	metrics "github.com/docker/go-metrics"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
)

func main() {
	address := flag.String("address", "", "the socket to listen on")
	file := flag.String("config", "", "the settings, in TOML")
	root := flag.String("root", "", "the folder that keeps the state")
	level := flag.String("log-level", "info", "what is logged, as JSON on stderr")
	flag.Parse()
	if err := run(*address, *file, *root, *level); err != nil {
		fmt.Fprintln(os.Stderr, "soci-snapshotter-grpc:", err)
		os.Exit(1)
	}
}

func run(address, file, root, level string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := log.SetFormat(log.JSONFormat); err != nil {
		return err
	}
	settings, err := config.NewConfigFromToml(file)
	if err != nil {
		return err
	}
	if err := log.SetLevel(level); err != nil {
		return err
	}
	credentials := dockerconfig.NewDockerConfigKeychain(ctx)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	store, err := metadataStore(filepath.Join(root, "metadata.db"))
	if err != nil {
		return err
	}
	snapshotter, err := service.NewSociSnapshotterService(ctx, root, &settings.ServiceConfig,
		service.WithCredsFuncs(credentials), service.WithFilesystemOptions(fs.WithMetadataStore(store)))
	if err != nil {
		return err
	}
	defer snapshotter.Close()
	if settings.MetricsAddress != "" {
		metricsListener, err := net.Listen("tcp", settings.MetricsAddress)
		if err != nil {
			return err
		}
		go func() { _ = http.Serve(metricsListener, metrics.Handler()) }()
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(inNamespace))
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	listener, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		server.GracefulStop()
	}()
	return server.Serve(listener)
}

// A call's namespace is passed on to containerd, whose content the parallel pull reads.
func inNamespace(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if name, ok := namespaces.Namespace(ctx); ok {
		ctx = namespaces.WithNamespace(ctx, name)
	}
	return handle(ctx, request)
}

// The tables of contents of all layers lie in one file, as `metadata_store = "db"` says.
func metadataStore(file string) (metadata.Store, error) {
	db, err := bolt.Open(file, 0o600, &bolt.Options{
		NoFreelistSync:  true,
		InitialMmapSize: 64 << 20,
		FreelistType:    bolt.FreelistMapType,
	})
	if err != nil {
		return nil, err
	}
	return func(reader *io.SectionReader, toc ztoc.TOC, options ...metadata.Option) (metadata.Reader, error) {
		return metadata.NewReader(db, reader, toc, options...)
	}, nil
}
