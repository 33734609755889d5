// containerd-stargz-grpc, from its root module: the real snapshotter behind a socket, with its own settings; and the eStargz
// library, asked about one layer.
//
//	containerd-stargz-grpc --address SOCKET --config FILE --root FOLDER [--log-level LEVEL]
//	containerd-stargz-grpc check BLOB TOC-DIGEST        verifies a layer by the digest of its TOC, and reads all of it
//	containerd-stargz-grpc make TAR BLOB CHUNK MIN      makes a layer as converters do; prints the digest of its TOC
//
// The program of that name is in a nested module; what it does beyond this is to talk to systemd, Kubernetes and IPFS.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/log"
	stargzfs "github.com/containerd/stargz-snapshotter/fs"
	"github.com/containerd/stargz-snapshotter/metadata/memory"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/keychain/dockerconfig"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == "check" {
		done(check(os.Args[2], os.Args[3]))
		return
	}
	if len(os.Args) == 6 && os.Args[1] == "make" {
		done(create(os.Args[2], os.Args[3], os.Args[4], os.Args[5]))
		return
	}
	address := flag.String("address", "", "the socket to listen on")
	file := flag.String("config", "", "the settings, in TOML")
	root := flag.String("root", "", "the folder that keeps the state")
	level := flag.String("log-level", "info", "what is logged, as JSON on stderr")
	flag.Parse()
	done(serve(*address, *file, *root, *level))
}

func done(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "containerd-stargz-grpc:", err)
		os.Exit(1)
	}
}

func serve(address, file, root, level string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := log.SetFormat(log.JSONFormat); err != nil {
		return err
	}
	if err := log.SetLevel(level); err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var settings service.Config
	if err := toml.Unmarshal(text, &settings); err != nil {
		return err
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	snapshotter, err := service.NewStargzSnapshotterService(ctx, root, &settings,
		service.WithCredsFuncs(dockerconfig.NewDockerconfigKeychain(ctx)),
		service.WithFilesystemOptions(stargzfs.WithMetadataStore(memory.NewReader)))
	if err != nil {
		return err
	}
	defer snapshotter.Close()
	server := grpc.NewServer()
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
