package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
)

// checked is what is printed of a file: its digest as its bytes have it, and how many chunks it lies in.
type checked struct {
	Type   string `json:"type"`
	Size   int64  `json:"size"`
	Mode   int64  `json:"mode"`
	Link   string `json:"link,omitempty"`
	Digest string `json:"digest,omitempty"`
	Chunks int    `json:"chunks,omitempty"`
}

// check opens a layer as a snapshotter does, verifies its TOC, every chunk and every file, and prints the files as JSON by name.
func check(path, tocDigest string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	reader, err := estargz.Open(io.NewSectionReader(file, 0, info.Size()))
	if err != nil {
		return err
	}
	verifier, err := reader.VerifyTOC(digest.Digest(tocDigest))
	if err != nil {
		return err
	}
	found := map[string]checked{}
	root, _ := reader.Lookup("")
	if err := walk(reader, verifier, "", root, found); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

func walk(
	reader *estargz.Reader, verifier estargz.TOCEntryVerifier, name string, entry *estargz.TOCEntry, found map[string]checked,
) error {
	var failed error
	entry.ForeachChild(func(base string, child *estargz.TOCEntry) bool {
		failed = walk(reader, verifier, name+"/"+base, child, found)
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	item := checked{Type: entry.Type, Size: entry.Size, Mode: entry.Mode, Link: entry.LinkName}
	if entry.Type == "reg" && entry.Size > 0 {
		whole := sha256.New()
		chunks, err := chunked(reader, verifier, name, entry, whole)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		item.Digest, item.Chunks = fmt.Sprintf("sha256:%x", whole.Sum(nil)), chunks
		if item.Digest != entry.Digest {
			return fmt.Errorf("%s: the digest is %s, not %s as the TOC says", name, item.Digest, entry.Digest)
		}
	}
	found[name] = item
	return nil
}

// chunked verifies every chunk of a file by itself, and writes all of them to whole; returns how many there are.
func chunked(
	reader *estargz.Reader, verifier estargz.TOCEntryVerifier, name string, entry *estargz.TOCEntry, whole io.Writer,
) (int, error) {
	content, err := reader.OpenFile(name)
	if err != nil {
		return 0, err
	}
	count := 0
	for offset := int64(0); offset < entry.Size; count++ {
		chunk, ok := reader.ChunkEntryForOffset(name, offset)
		if !ok || chunk.ChunkOffset != offset || chunk.ChunkSize <= 0 {
			return 0, fmt.Errorf("no chunk starts at %d", offset)
		}
		check, err := verifier.Verifier(chunk)
		if err != nil {
			return 0, err
		}
		data := make([]byte, chunk.ChunkSize)
		if _, err := content.ReadAt(data, offset); err != nil && err != io.EOF {
			return 0, fmt.Errorf("chunk at %d: %w", offset, err)
		}
		for _, to := range []io.Writer{check, whole} {
			if _, err := to.Write(data); err != nil {
				return 0, err
			}
		}
		if !check.Verified() {
			return 0, fmt.Errorf("chunk at %d: other bytes than the TOC says", offset)
		}
		offset += chunk.ChunkSize
	}
	return count, nil
}

// create makes a layer of a tar, with chunks of so many bytes, and at least so many in a gzip member.
func create(tarball, blob, chunk, least string) error {
	sizes := []int{0, 0}
	for number, text := range []string{chunk, least} {
		size, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		sizes[number] = size
	}
	data, err := os.ReadFile(tarball)
	if err != nil {
		return err
	}
	made, err := estargz.Build(io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data))),
		estargz.WithChunkSize(sizes[0]), estargz.WithMinChunkSize(sizes[1]))
	if err != nil {
		return err
	}
	out, err := os.Create(blob)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, made); err != nil {
		return err
	}
	fmt.Println(made.TOCDigest())
	return errors.Join(made.Close(), out.Close())
}
