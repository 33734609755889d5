package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/awslabs/soci-snapshotter/ztoc"
	"github.com/awslabs/soci-snapshotter/ztoc/compression"
	"github.com/opencontainers/go-digest"
)

const (
	buildTool = "AWS SOCI CLI v0.2"
	spanSize  = int64(4 << 20)
)

func ztocCommand(arguments []string) error {
	flags := flag.NewFlagSet("ztoc", flag.ContinueOnError)
	span := flags.Int64("span-size", spanSize, "bytes of tar between two checkpoints")
	files, err := flagged(flags, arguments, 1)
	if err != nil {
		return err
	}
	if len(files) > 1 {
		if *span, err = bytesOf(files[1]); err != nil {
			return err
		}
	}
	return build(files[0], *span, compression.Gzip, os.Stdout)
}

func ztocsCommand(arguments []string) error {
	flags := flag.NewFlagSet("ztocs", flag.ContinueOnError)
	span := flags.Int64("span-size", spanSize, "bytes of tar between two checkpoints")
	algorithm := flags.String("compression", compression.Gzip, "gzip or uncompressed")
	files, err := flagged(flags, arguments, 2)
	if err != nil {
		return err
	}
	for _, layer := range files[1:] {
		if err := written(filepath.Join(files[0], filepath.Base(layer)), func(out io.Writer) error {
			return build(layer, *span, *algorithm, out)
		}); err != nil {
			return fmt.Errorf("%s: %w", layer, err)
		}
	}
	return nil
}

func build(layer string, span int64, algorithm string, out io.Writer) error {
	built, err := ztoc.NewBuilder(buildTool).BuildZtoc(layer, span, ztoc.WithCompression(algorithm))
	if err != nil {
		return err
	}
	return marshal(built, out)
}

func marshal(z *ztoc.Ztoc, out io.Writer) error {
	reader, _, err := ztoc.Marshal(z)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, reader)
	return err
}

func written(path string, write func(io.Writer) error) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(out), out.Close())
}

// described is a ztoc as the tests write it in JSON; the checkpoints are the packed blob.
type described struct {
	BlobSize    int64
	TarSize     int64
	Checkpoints []byte
	Digests     []digest.Digest
	Toc         []struct {
		Name, Type, Linkname, Uname, Gname string
		Offset, Size, Mode, Mtime          int64
		Devmajor, Devminor                 int64
		Uid, Gid                           int
		Pax                                map[string]string
	}
}

func marshalCommand(arguments []string) error {
	files, err := flagged(flag.NewFlagSet("marshal", flag.ContinueOnError), arguments, 1)
	if err != nil {
		return err
	}
	var all []described
	if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil {
		return err
	}
	for index, one := range all {
		if err := written(filepath.Join(files[0], strconv.Itoa(index)), func(out io.Writer) error {
			return marshal(one.ztoc(), out)
		}); err != nil {
			return err
		}
	}
	return nil
}

func (d described) ztoc() *ztoc.Ztoc {
	z := &ztoc.Ztoc{
		Version:                 ztoc.Version09,
		BuildToolIdentifier:     buildTool,
		CompressedArchiveSize:   compression.Offset(d.BlobSize),
		UncompressedArchiveSize: compression.Offset(d.TarSize),
		CompressionInfo: ztoc.CompressionInfo{
			MaxSpanID:            compression.SpanID(len(d.Digests) - 1),
			SpanDigests:          d.Digests,
			Checkpoints:          d.Checkpoints,
			CompressionAlgorithm: compression.Gzip,
		},
	}
	for _, entry := range d.Toc {
		z.FileMetadata = append(z.FileMetadata, ztoc.FileMetadata{
			Name:               entry.Name,
			Type:               entry.Type,
			UncompressedOffset: compression.Offset(entry.Offset),
			UncompressedSize:   compression.Offset(entry.Size),
			Linkname:           entry.Linkname,
			Mode:               entry.Mode,
			UID:                entry.Uid,
			GID:                entry.Gid,
			Uname:              entry.Uname,
			Gname:              entry.Gname,
			ModTime:            time.Unix(entry.Mtime, 0),
			Devmajor:           entry.Devmajor,
			Devminor:           entry.Devminor,
			PAXHeaders:         entry.Pax,
		})
	}
	return z
}
