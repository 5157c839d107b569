package image_test

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestDisk has two images that share a layer, of which one is used by a container
// after its removal.
func TestDisk(t *testing.T) {
	r := newRegistry(t)
	shared, one, two := pack(t, text("a", random(400_000))), pack(t, text("b", random(200_000))), pack(t, text("c", random(100_000)))
	r.push("one", "v1", ocispec.ImageConfig{}, shared, one)
	r.push("two", "v1", ocispec.ImageConfig{}, shared, two)
	s := open(t, t.TempDir())
	first := pull(t, s, r.Host+"/one:v1")
	pull(t, s, r.Host+"/two:v1")

	d := s.Disk()
	if len(d.Images) != 2 || d.Images[0].Name != r.Host+"/one:v1" || d.Images[1].Name != r.Host+"/two:v1" {
		t.Fatalf("images %+v", d.Images)
	}
	for i, size := range []uint64{200_000, 100_000} { // a blob and an unpacked layer
		if im := d.Images[i]; im.Exclusive < 2*size || im.Exclusive > 2*size+100_000 || im.Shared < 800_000 || im.Shared > 900_000 {
			t.Errorf("image %+v, want %d and 800000 bytes", im, 2*size)
		}
	}
	sum := d.Images[0].Exclusive + d.Images[1].Exclusive + d.Images[0].Shared
	if info, err := s.FsInfo(); err != nil || d.Blobs+d.Layers+d.Parts != info.UsedBytes || sum+d.Kept != d.Blobs+d.Layers || d.Kept > 50_000 {
		t.Errorf("all is %+v, of images %d, in all %+v, %v", d, sum, info, err)
	}

	if err := s.Prepare("container", first.ID, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), r.Host+"/one:v1"); err != nil {
		t.Fatal(err)
	}
	if d := s.Disk(); len(d.Images) != 1 || d.Images[0].Shared != 0 || d.Kept < 200_000 || d.Kept > 300_000 {
		t.Errorf("with a container of a removed image: %+v", d)
	}
	if err := s.Discard("container"); err != nil {
		t.Fatal(err)
	}
}
