package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/awslabs/soci-snapshotter/soci"
	"github.com/awslabs/soci-snapshotter/soci/store"
	"github.com/containerd/containerd/content/local"
	"github.com/containerd/containerd/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/oci"
)

func convertCommand(arguments []string) error {
	flags := flag.NewFlagSet("convert", flag.ContinueOnError)
	span := flags.Int64("span-size", spanSize, "bytes of tar between two checkpoints")
	minimum := flags.Int64("min-layer-size", 10<<20, "smaller layers get no ztoc")
	var ahead []string
	flags.Func("prefetch", "a file that is fetched while its layer is mounted; may be repeated", func(path string) error {
		ahead = append(ahead, path)
		return nil
	})
	xattrs := flags.Bool("optimize-xattrs", false, "say of layers without extended attributes that they have none")
	layouts, err := flagged(flags, arguments, 2)
	if err != nil {
		return err
	}
	in, out := layouts[0], layouts[1]
	if err := os.CopyFS(out, os.DirFS(in)); err != nil {
		return err
	}
	// The library narrates on stdout, which is to hold the digest alone.
	stdout := os.Stdout
	os.Stdout = os.Stderr
	converted, err := convert(out, *span, *minimum, ahead, *xattrs)
	if errors.Is(err, soci.ErrEmptyIndex) {
		return fmt.Errorf("no layer is large enough for a ztoc: %w", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, converted.Digest)
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{*converted},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "index.json"), index, 0o644)
}

// convert makes an image of the layout lazily startable on every platform it has, and adds the new blobs to the layout.
func convert(layout string, span, minimum int64, ahead []string, xattrs bool) (*ocispec.Descriptor, error) {
	ctx := context.Background()
	target, err := root(layout)
	if err != nil {
		return nil, err
	}
	written, err := oci.New(layout)
	if err != nil {
		return nil, err
	}
	read, err := local.NewStore(layout)
	if err != nil {
		return nil, err
	}
	scratch, err := os.MkdirTemp("", "soci-peer-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(scratch)
	db, err := soci.NewDB(soci.ArtifactsDbPath(scratch))
	if err != nil {
		return nil, err
	}
	var optimizations []soci.Optimization
	if xattrs {
		optimizations = []soci.Optimization{soci.XAttrOptimization}
	}
	builder, err := soci.NewIndexBuilder(read, &store.SociStore{Store: written},
		soci.WithOptimizations(optimizations),
		soci.WithSpanSize(span),
		soci.WithMinLayerSize(minimum),
		soci.WithBuildToolIdentifier(buildTool),
		soci.WithArtifactsDb(db),
		soci.WithPrefetchPaths(ahead),
	)
	if err != nil {
		return nil, err
	}
	platforms, err := images.Platforms(ctx, read, target)
	if err != nil {
		return nil, err
	}
	return builder.Convert(ctx, images.Image{Name: layout, Target: target}, soci.ConvertWithPlatforms(platforms...))
}

// root finds what the layout's index.json is about, by the rules of the command line: a list of one
// manifest means that manifest, and an index.json with several entries is itself the list.
func root(layout string) (ocispec.Descriptor, error) {
	top, err := readIndex(filepath.Join(layout, "index.json"))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	switch {
	case len(top.Manifests) == 0:
		return ocispec.Descriptor{}, fmt.Errorf("%s holds no image", layout)
	case len(top.Manifests) > 1:
		return addIndex(layout, top)
	case !images.IsIndexType(top.Manifests[0].MediaType):
		return top.Manifests[0], nil
	}
	list, err := readIndex(blob(layout, top.Manifests[0].Digest))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if len(list.Manifests) == 1 && images.IsManifestType(list.Manifests[0].MediaType) {
		return list.Manifests[0], nil
	}
	return top.Manifests[0], nil
}

func readIndex(path string) (index ocispec.Index, err error) {
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &index)
	}
	return index, err
}

func addIndex(layout string, index ocispec.Index) (ocispec.Descriptor, error) {
	index.MediaType = ocispec.MediaTypeImageIndex
	text, err := json.Marshal(index)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	found := digest.FromBytes(text)
	return ocispec.Descriptor{MediaType: index.MediaType, Digest: found, Size: int64(len(text))},
		os.WriteFile(blob(layout, found), text, 0o644)
}

func blob(layout string, found digest.Digest) string {
	return filepath.Join(layout, "blobs", found.Algorithm().String(), found.Encoded())
}
