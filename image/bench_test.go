package image_test

import (
	"fmt"
	"os"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/test/testkit"
)

// BenchmarkPull pulls an image of eight layers of 64 MB from a registry in
// this process. CRISP_BENCH_ROOT says on which disk.
func BenchmarkPull(b *testing.B) {
	testkit.Root(b)
	r := newRegistry(b)
	var layers []packed
	const files, size = 64, 1 << 20
	for i := range 8 {
		var fs []file
		for j := range files {
			// Half of it is compressible.
			body := random(size/2+i*files+j) + fmt.Sprintf("%0*d", size/2, j)
			fs = append(fs, text(fmt.Sprintf("l%d/f%d", i, j), body))
		}
		layers = append(layers, pack(b, fs...))
	}

	r.push("app", "v1", ocispec.ImageConfig{}, layers...)
	b.SetBytes(8 * files * size)
	for b.Loop() {
		b.StopTimer()
		root, err := os.MkdirTemp(os.Getenv("CRISP_BENCH_ROOT"), "pull-")
		if err != nil {
			b.Fatal(err)
		}

		s := open(b, root)
		b.StartTimer()
		pull(b, s, r.Host+"/app:v1")
		b.StopTimer()
		s.Close()
		os.RemoveAll(root)
		b.StartTimer()
	}
}
