package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// kind is a kind of image to pull. Every layer holds as many files of one
// size, half of each incompressible.
type kind struct {
	name, text          string
	layers, files, size int
	pack                compression.Compression
}

var kinds = [...]kind{
	{"layers-gzip", "8 layers of 64 MB, gzip", 8, 1, 64 << 20, compression.GZip},
	{"layers-zstd", "8 layers of 64 MB, zstd", 8, 1, 64 << 20, compression.ZStd},
	{"files-gzip", "20,000 files of 2 KiB, gzip", 1, 20000, 2 << 10, compression.GZip},
	{"tiny-gzip", "60 layers of 1 KiB, gzip", 60, 1, 1 << 10, compression.GZip},
}

// push makes the image and puts it into a registry.
func (k kind) push(ctx context.Context, registry string) error {
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for n := range k.layers {
		layer, err := k.layer(n)
		if err == nil {
			image, err = mutate.AppendLayers(image, layer)
		}
		if err != nil {
			return err
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return err
	}
	ref, err := name.ParseReference(registry+"/"+k.name+":latest", name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(ref, image, remote.WithContext(ctx))
}

// layer makes the n-th layer.
func (k kind) layer(n int) (v1.Layer, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	// The same content every time, another one in every layer of any kind.
	random := rand.NewChaCha8([32]byte{byte(n), byte(k.layers), byte(k.size >> 8), k.pack[0]})
	content := make([]byte, k.size)
	for i := range k.files {
		for at := 0; at < len(content); at += 1024 {
			_, _ = random.Read(content[at:min(at+512, len(content))]) // never fails
		}
		dir := fmt.Sprintf("layer%d/dir%d", n, i/100)
		if i%100 == 0 {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
				return nil, err
			}
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s/file%d", dir, i), Mode: 0o644, Size: int64(len(content))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	media := types.OCILayer
	if k.pack == compression.ZStd {
		media = types.OCILayerZStd
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithCompression(k.pack), tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithMediaType(media), tarball.WithCompressedCaching)
}
