package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/awslabs/soci-snapshotter/ztoc"
	"github.com/awslabs/soci-snapshotter/ztoc/compression"
	"github.com/opencontainers/go-digest"
)

// sampled is how many files are also read with the library's own ExtractFile, which inflates from the
// span's start for each: a whole layer that way would take minutes.
const sampled = 200

func checkCommand(arguments []string) error {
	files, err := flagged(flag.NewFlagSet("check", flag.ContinueOnError), arguments, 2)
	if err != nil {
		return err
	}
	serialized, err := os.Open(files[0])
	if err != nil {
		return err
	}
	defer serialized.Close()
	z, err := ztoc.Unmarshal(serialized)
	if err != nil {
		return err
	}
	layer, err := os.Open(files[1])
	if err != nil {
		return err
	}
	defer layer.Close()
	info, err := layer.Stat()
	if err != nil {
		return err
	}
	if int64(z.CompressedArchiveSize) != info.Size() {
		return fmt.Errorf("the ztoc is of a layer of %d bytes, this one has %d", z.CompressedArchiveSize, info.Size())
	}
	if err := checkSpans(z, layer); err != nil {
		return err
	}
	entries, err := checkEntries(z, layer)
	if err != nil {
		return err
	}
	fmt.Printf("%d spans, %d entries\n", z.MaxSpanID+1, entries)
	return nil
}

// checkSpans inflates each span by itself, from its window, and compares it with the inflated layer.
func checkSpans(z *ztoc.Ztoc, layer *os.File) error {
	zinfo, err := z.Zinfo()
	if err != nil {
		return err
	}
	defer zinfo.Close()
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	whole, err := gzip.NewReader(layer)
	if err != nil {
		return err
	}
	if int(z.MaxSpanID)+1 != len(z.SpanDigests) || z.MaxSpanID != zinfo.MaxSpanID() {
		return fmt.Errorf("%d spans, %d digests, %d checkpoints", z.MaxSpanID+1, len(z.SpanDigests), zinfo.MaxSpanID()+1)
	}
	// The inflater and the spans share one file: ReadAt leaves its position alone.
	for span := compression.SpanID(0); span <= z.MaxSpanID; span++ {
		start := zinfo.StartCompressedOffset(span)
		end := zinfo.EndCompressedOffset(span, z.CompressedArchiveSize)
		compressed := make([]byte, end-start)
		if _, err := layer.ReadAt(compressed, int64(start)); err != nil {
			return fmt.Errorf("span %d: %w", span, err)
		}
		if found := digest.FromBytes(compressed); found != z.SpanDigests[span] {
			return fmt.Errorf("span %d has the digest %s, the ztoc says %s", span, found, z.SpanDigests[span])
		}
		from := zinfo.StartUncompressedOffset(span)
		size := zinfo.EndUncompressedOffset(span, z.UncompressedArchiveSize) - from
		inflated, err := zinfo.ExtractDataFromBuffer(compressed, size, from, span)
		if err != nil {
			return fmt.Errorf("span %d: %w", span, err)
		}
		expected := make([]byte, size)
		if _, err := io.ReadFull(whole, expected); err != nil {
			return fmt.Errorf("span %d: %w", span, err)
		}
		if !bytes.Equal(inflated, expected) {
			return fmt.Errorf("span %d inflates to other bytes than the layer", span)
		}
	}
	// What follows the two zero blocks that end a tar is no part of the archive, and none of its bytes count.
	rest, err := io.ReadAll(whole)
	if err == nil && len(bytes.Trim(rest, "\x00")) > 0 {
		err = errors.New("the spans end before the tar does")
	}
	return err
}

// checkEntries compares the table of contents with the tar, and some files' bytes as the library extracts them.
func checkEntries(z *ztoc.Ztoc, layer *os.File) (int, error) {
	toc := ztoc.NewTocBuilder()
	toc.RegisterTarProvider(compression.Gzip, ztoc.TarProviderGzip)
	expected, size, err := toc.TocFromFile(compression.Gzip, layer.Name())
	if err != nil {
		return 0, err
	}
	if size != z.UncompressedArchiveSize {
		return 0, fmt.Errorf("the tar has %d bytes, the ztoc says %d", size, z.UncompressedArchiveSize)
	}
	if len(expected.FileMetadata) != len(z.FileMetadata) {
		return 0, fmt.Errorf("the tar has %d entries, the ztoc %d", len(expected.FileMetadata), len(z.FileMetadata))
	}
	for index, entry := range expected.FileMetadata {
		found := z.FileMetadata[index]
		if !found.ModTime.Equal(entry.ModTime) {
			return 0, fmt.Errorf("entry %d, %q: time %s, the tar says %s", index, entry.Name, found.ModTime, entry.ModTime)
		}
		found.ModTime = entry.ModTime
		if !found.Equal(entry) {
			return 0, fmt.Errorf("entry %d: %+v, the tar says %+v", index, found, entry)
		}
	}
	return len(expected.FileMetadata), checkFiles(z, layer)
}

func checkFiles(z *ztoc.Ztoc, layer *os.File) error {
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	whole, err := gzip.NewReader(layer)
	if err != nil {
		return err
	}
	section := io.NewSectionReader(layer, 0, int64(z.CompressedArchiveSize))
	entries := tar.NewReader(whole)
	step := len(z.FileMetadata)/sampled + 1
	seen := map[string]bool{}
	for index := 0; ; index++ {
		header, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		// The library finds a file by its name: of two with one name only the first.
		first := !seen[header.Name]
		seen[header.Name] = true
		if header.Typeflag != tar.TypeReg || index%step != 0 || !first {
			continue
		}
		expected, err := io.ReadAll(entries)
		if err != nil {
			return err
		}
		found, err := z.ExtractFile(section, header.Name)
		if err != nil {
			return fmt.Errorf("%q: %w", header.Name, err)
		}
		if !bytes.Equal(found, expected) {
			return fmt.Errorf("%q has other bytes through the ztoc than in the tar", header.Name)
		}
	}
}
