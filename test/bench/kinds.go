package main

import (
	"archive/tar"
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

// kind is a kind of image to pull. All layers have the same number of files of the
// same size; half of each file is incompressible.
type kind struct {
	name, text          string
	layers, files, size int
	pack                compression.Compression
	// seed distinguishes the contents of images of one shape. Layers from changed
	// on use the next seed; those before are shared with the image of this seed.
	seed, changed int
}

// kinds are the images that are pulled one by one; scale 1 is full size.
func kinds(scale float64) []kind {
	mb := func(n float64) int { return max(int(n*scale), 1) }
	files := max(int(100000*scale), 100)
	var all []kind
	for _, p := range []compression.Compression{compression.GZip, compression.ZStd} {
		k := func(name, text string, layers, files, size int) {
			all = append(all, kind{name: name + "-" + string(p), text: text + ", " + string(p), layers: layers, files: files, size: size, pack: p, changed: layers})
		}
		k("layers", fmt.Sprintf("8 layers of %d MB", mb(64)), 8, 1, mb(64)<<20)
		k("large", fmt.Sprintf("1 layer of %d MB", mb(1024)), 1, 1, mb(1024)<<20)
		k("files", fmt.Sprintf("%d files of 2 KiB", files), 1, files, 2<<10)
		k("tiny", "60 layers of 1 KiB", 60, 1, 1<<10)
	}
	return all
}

// next returns an image of the same kind that shares the first half of its layers.
func (k kind) next() (kind, bool) {
	k.name, k.changed = k.name+"-next", k.layers/2
	return k, k.layers > 1
}

// crowded are images that are pulled at the same time, with nothing in common.
func crowded(scale float64) []kind {
	size := max(int(8*scale), 1) << 20
	all := make([]kind, 10)
	for i := range all {
		all[i] = kind{name: fmt.Sprintf("crowd-%d", i), layers: 4, files: 1, size: size, pack: compression.GZip, seed: 10 + i, changed: 4}
	}
	return all
}

// push creates the image and pushes it to a registry.
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

// layer creates the n-th layer.
func (k kind) layer(n int) (v1.Layer, error) {
	media := types.OCILayer
	if k.pack == compression.ZStd {
		media = types.OCILayerZStd
	}
	open := func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() { w.CloseWithError(k.archive(n, w)) }() // the reader reads to the end or closes
		return r, nil
	}
	return tarball.LayerFromOpener(open, tarball.WithCompression(k.pack), tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithMediaType(media), tarball.WithCompressedCaching)
}

// archive writes the n-th layer. Its content is reproducible, and different from
// that of all other layers.
func (k kind) archive(n int, out io.Writer) error {
	seed := k.seed
	if n >= k.changed {
		seed++
	}

	random := rand.NewChaCha8([32]byte{byte(n), byte(k.layers), byte(k.size >> 8), byte(k.size >> 16), k.pack[0], byte(seed)})
	w := tar.NewWriter(out)
	chunk := make([]byte, min(k.size, 1<<20))
	for i := range k.files {
		dir := fmt.Sprintf("layer%d/dir%d", n, i/100)
		if i%100 == 0 {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
				return err
			}
		}

		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s/file%d", dir, i), Mode: 0o644, Size: int64(k.size)}); err != nil {
			return err
		}
		for left := k.size; left > 0; left -= len(chunk) {
			chunk = chunk[:min(left, len(chunk))]
			for at := 0; at < len(chunk); at += 1024 {
				_, _ = random.Read(chunk[at:min(at+512, len(chunk))]) // never fails
			}
			if _, err := w.Write(chunk); err != nil {
				return err
			}
		}
	}

	return w.Close()
}
