package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// changed is the only timestamp in the images, so that the same packages give
// the same digests.
var changed = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// tree is the content of one layer: what to put at each absolute path.
type tree map[string]entry

type entry struct {
	tar.Header
	content []byte
}

// dir adds a directory.
func (t tree) dir(name string, mode int64) {
	t[name] = entry{Header: tar.Header{Typeflag: tar.TypeDir, Mode: mode}}
}

// text adds a world-readable file.
func (t tree) text(name, content string) { t.file(name, 0o644, []byte(content)) }

func (t tree) file(name string, mode int64, content []byte) {
	t.parents(name)
	t[name] = entry{Header: tar.Header{Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(content))}, content: content}
}

// copy adds a file of the build machine.
func (t tree) copy(name string, mode int64, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	t.file(name, mode, content)
	return nil
}

// link adds a hard link to another file of the same tree.
func (t tree) link(name, target string) {
	t.parents(name)
	t[name] = entry{Header: tar.Header{Typeflag: tar.TypeLink, Linkname: strings.TrimPrefix(target, "/"), Mode: 0o755}}
}

func (t tree) symlink(name, target string) {
	t.parents(name)
	t[name] = entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}}
}

func (t tree) parents(name string) {
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		if _, ok := t[dir]; !ok {
			t.dir(dir, 0o755)
		}
	}
}

// part is a layer that several images may share; it is built once.
type part struct {
	make   func() (tree, error)
	packed map[compression.Compression]v1.Layer
}

func newPart(make func() (tree, error)) *part {
	return &part{make: make, packed: map[compression.Compression]v1.Layer{}}
}

// layer builds and packs the part.
func (p *part) layer(c compression.Compression) (v1.Layer, error) {
	if l, ok := p.packed[c]; ok {
		return l, nil
	}
	t, err := p.make()
	if err != nil {
		return nil, err
	}

	archive, err := t.tar()
	if err != nil {
		return nil, err
	}

	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }
	mediaType := types.OCILayer
	if c == compression.ZStd {
		mediaType = types.OCILayerZStd
	}

	l, err := tarball.LayerFromOpener(open, tarball.WithCompression(c), tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithMediaType(mediaType), tarball.WithCompressedCaching)
	if err != nil {
		return nil, err
	}
	p.packed[c] = l
	return l, nil
}

// tar writes the entries in the order of their paths, hard links last: their
// targets must be there before them.
func (t tree) tar() ([]byte, error) {
	names := make([]string, 0, len(t))
	for name := range t {
		names = append(names, name)
	}

	slices.SortFunc(names, func(a, b string) int {
		if la, lb := t[a].Typeflag == tar.TypeLink, t[b].Typeflag == tar.TypeLink; la != lb {
			if la {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})

	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range names {
		e := t[name]
		e.Name = strings.TrimPrefix(name, "/")
		if e.Typeflag == tar.TypeDir {
			e.Name += "/"
		}

		e.ModTime = changed
		if err := w.WriteHeader(&e.Header); err != nil {
			return nil, fmt.Errorf("pack %s: %w", name, err)
		}
		if _, err := w.Write(e.content); err != nil {
			return nil, fmt.Errorf("pack %s: %w", name, err)
		}
	}

	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack layer: %w", err)
	}
	return out.Bytes(), nil
}
