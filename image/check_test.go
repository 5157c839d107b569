package image_test

import (
	"archive/tar"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crisp/image"
	"crisp/test/testkit"
)

// rot is a way in which something is damaged at rest.
type rot struct {
	name string
	do   func(path string) error
}

// rotBit changes one bit of a file, and leaves its times as they were.
func rotBit(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}

	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}

	data[len(data)/2] ^= 4
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}

	_, err = f.Write(data)
	return errors.Join(err, f.Close(), os.Chtimes(path, time.Time{}, info.ModTime()))
}

func cut(path string) error { return os.Truncate(path, 1000) }

// blobRots damage a blob, layerRots the file "f" of a layer or what is beside it.
var (
	blobRots  = []rot{{"bit", rotBit}, {"cut", cut}, {"gone", os.Remove}, {"empty", func(p string) error { return os.Truncate(p, 0) }}}
	layerRots = []rot{
		{"bit", rotBit},
		{"cut", cut},
		{"gone", os.Remove},
		{"mode", func(p string) error { return os.Chmod(p, 0o777) }},
		{"owner", func(p string) error { return os.Lchown(p, 7, 7) }},
		{"time", func(p string) error { return os.Chtimes(p, time.Time{}, time.Unix(1, 0)) }},
		{"attribute", func(p string) error { return unix.Setxattr(p, "trusted.overlay.opaque", []byte("y"), 0) }},
		{"one more", func(p string) error { return os.WriteFile(p+"2", nil, 0o600) }},
		{"link", func(p string) error {
			l := filepath.Join(filepath.Dir(p), "link")
			return errors.Join(os.Remove(l), os.Symlink("elsewhere", l))
		}},
		{"directory", func(p string) error { return os.Chmod(filepath.Dir(p), 0o700) }},
	}
)

// TestCheck damages each kind of thing in each way: exactly that is found, and
// repaired with as little as possible.
func TestCheck(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	link := file{Header: tar.Header{Name: "d/link", Typeflag: tar.TypeSymlink, Linkname: "f", Mode: 0o777}}
	var layers []packed
	for i := range 3 {
		layers = append(layers, pack(t, dir("d"), text("d/f", random(50_000+i)), link, text("d/.wh.gone", "")))
	}

	manifest, id := r.push("app", "v1", ocispec.ImageConfig{}, layers...)
	ref := r.Host + "/app:v1"
	root := t.TempDir()
	s := open(t, root)
	pull(t, s, ref)

	chains := pull(t, s, ref).ChainIDs
	if got := examine(t, s, false); len(got) > 0 {
		t.Fatalf("of an image without damage: %+v", got)
	}

	blob := func(d digest.Digest) string { return filepath.Join(root, "blobs", "sha256", d.Encoded()) }
	for _, way := range blobRots {
		for what, d := range map[string]digest.Digest{
			"manifest": manifest.Digest, "configuration": digest.Digest(id), "layer": digest.FromBytes(layers[1].data),
		} {
			t.Run(what+" "+way.name, func(t *testing.T) {
				wantRepaired(t, s, r, ref, "blob "+d.String(), 1, func() error { return way.do(blob(d)) })
			})
		}
	}

	for _, way := range layerRots {
		t.Run("unpacked "+way.name, func(t *testing.T) {
			path := filepath.Join(root, "layers", chains[1].Encoded(), "fs", "d", "f")
			wantRepaired(t, s, r, ref, "layer "+chains[1].String(), 0, func() error { return way.do(path) })
		})
	}

	if err := s.Remove(t.Context(), ref); err != nil {
		t.Error(err)
	}
	waitFor(t, "everything to go with the image", func() bool { return len(orphans(root)) == 0 })
}

// wantRepaired damages one thing, and wants it found, and found again as
// nothing was changed, repaired by so many downloads, and then not found.
func wantRepaired(t *testing.T, s *image.Service, r *testRegistry, ref, what string, downloads int, damage func() error) {
	t.Helper()
	if err := damage(); err != nil {
		t.Fatal(err)
	}

	for range 2 {
		got := examine(t, s, false)
		if len(got) != 1 || got[0].What != what || got[0].Repaired || got[0].Why == "" || len(got[0].Images) != 1 || !strings.HasSuffix(ref, got[0].Images[0]) {
			t.Fatalf("found %+v, want %s", got, what)
		}
	}

	if _, err := s.Get(ref); err != nil {
		t.Errorf("a check alone makes the image unusable: %v", err)
	}
	before := r.count("GET", "/blobs/")
	got := examine(t, s, true)
	if len(got) != 1 || got[0].What != what || !got[0].Repaired || got[0].Remains != "" {
		t.Fatalf("repaired %+v, want %s", got, what)
	}

	if n := r.count("GET", "/blobs/") - before; n > downloads {
		t.Errorf("%d blobs were fetched, want %d", n, downloads)
	}
	if got := examine(t, s, false); len(got) > 0 {
		t.Errorf("after the repair: %+v", got)
	}
}

// examine checks, and wants the numbers to be what was told.
func examine(t *testing.T, s *image.Service, repair bool) (list []image.Damage) {
	t.Helper()
	n, err := s.Check(t.Context(), repair, func(d image.Damage) { list = append(list, d) })
	if err != nil {
		t.Fatal(err)
	}

	repaired := 0
	for _, d := range list {
		if d.Repaired {
			repaired++
		}
	}

	if n.Damaged != len(list) || n.Repaired != repaired || n.Blobs != 5 || n.Layers+n.Unchecked != 3 {
		t.Errorf("%+v were checked, %d found", n, len(list))
	}
	return list
}

// TestCheckLeavesWhatIsInUse does not take a layer away from a container, and
// says so. When the container is gone the layer is repaired.
func TestCheckLeavesWhatIsInUse(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("app", "v1", ocispec.ImageConfig{}, pack(t, text("f", random(5_000))), pack(t, text("g", "g")), pack(t, text("h", "h")))
	root := t.TempDir()
	s := open(t, root)
	im := pull(t, s, r.Host+"/app:v1")
	if err := s.Prepare("user", im.ID, nil, nil); err != nil {
		t.Fatal(err)
	}

	if err := rotBit(filepath.Join(root, "layers", im.ChainIDs[0].Encoded(), "fs", "f")); err != nil {
		t.Fatal(err)
	}
	if got := examine(t, s, true); len(got) != 1 || got[0].Repaired || !strings.Contains(got[0].Remains, "user") {
		t.Errorf("with a container: %+v", got)
	}

	if err := s.Discard("user"); err != nil {
		t.Fatal(err)
	}
	if got := examine(t, s, true); len(got) != 1 || !got[0].Repaired {
		t.Errorf("without: %+v", got)
	}
}

// TestCheckWithoutRegistry cannot fetch a blob. The image goes on to be usable
// and the next pull makes up for it.
func TestCheckWithoutRegistry(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	l := pack(t, text("f", random(5_000)))
	r.push("app", "v1", ocispec.ImageConfig{}, l, pack(t, text("g", "g")), pack(t, text("h", "h")))

	ref := r.Host + "/app:v1"
	root := t.TempDir()
	s := open(t, root)
	pull(t, s, ref)
	if err := rotBit(filepath.Join(root, "blobs", "sha256", digest.FromBytes(l.data).Encoded())); err != nil {
		t.Fatal(err)
	}

	r.onRequest(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})

	if got := examine(t, s, true); len(got) != 1 || got[0].Repaired || got[0].Remains == "" {
		t.Errorf("got %+v", got)
	}
	if _, err := s.Get(ref); err != nil {
		t.Error(err)
	}

	r.onRequest(nil)
	before := r.count("GET", "/blobs/")
	pull(t, s, ref)
	if n := r.count("GET", "/blobs/") - before; n != 1 {
		t.Errorf("%d blobs were fetched, want 1", n)
	}

	if got := examine(t, s, false); len(got) > 0 {
		t.Errorf("then: %+v", got)
	}
}
