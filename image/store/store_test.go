package store

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func describe(data string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(data), Size: int64(len(data))}
}

func openStore(t *testing.T, root string) *Store {
	t.Helper()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *Store, desc ocispec.Descriptor, data string) error {
	t.Helper()
	w, err := s.Create(desc)
	if err != nil {
		return err
	}
	defer w.Discard()

	if _, err := io.WriteString(w, data); err != nil {
		return err
	}
	if err := w.Finish(); err != nil {
		return err
	}

	if s.Has(desc) {
		t.Error("the blob is there before it is published")
	}
	if err := s.Sync(func(dir *os.File) error { return dir.Sync() }); err != nil {
		return err
	}
	return w.Publish()
}

func TestBlobs(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	const data = "some content"
	desc := describe(data)
	if err := put(t, s, desc, data); err != nil {
		t.Fatal(err)
	}

	long := desc
	long.Digest = digest.SHA512.FromString(data)
	if err := put(t, s, long, data); err != nil {
		t.Fatal(err)
	}

	for _, again := range []*Store{s, openStore(t, root)} {
		for _, d := range []ocispec.Descriptor{desc, long} {
			got, err := again.ReadAll(d, 100)
			if err != nil || string(got) != data || !again.Has(d) {
				t.Errorf("%s: %q, %v", d.Digest, got, err)
			}
		}
		if u := again.Usage(); u.Inodes != 2 || u.Bytes == 0 {
			t.Errorf("usage %+v", u)
		}
	}

	if _, err := s.ReadAll(desc, 3); !errors.Is(err, ErrMismatch) {
		t.Errorf("over the limit: %v, want %v", err, ErrMismatch)
	}
	for range 2 {
		for _, d := range []digest.Digest{desc.Digest, long.Digest} {
			if _, err := s.Detach(d); err != nil {
				t.Error(err)
			}
		}
	}

	if u := s.Usage(); u != (Usage{}) {
		t.Errorf("usage after removal %+v", u)
	}
	if _, err := s.ReadAll(desc, 100); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed: %v, want %v", err, ErrNotFound)
	}
}

func TestWrongContentIsNotPublished(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	for name, data := range map[string]string{"shorter": "abc", "longer": "abcdefghi", "other": "abcdex", "empty": ""} {
		if err := put(t, s, describe("abcdef"), data); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s: %v, want %v", name, err, ErrMismatch)
		}
	}

	for _, d := range []digest.Digest{"", "sha256:../../../x", "sha256:abc", "md5:00", digest.Digest("sha256:" + strings.Repeat("A", 64))} {
		if _, err := s.Create(ocispec.Descriptor{Digest: d}); err == nil {
			t.Errorf("digest %q was accepted", d)
		}
		if _, err := s.Reader(ocispec.Descriptor{Digest: d}); !errors.Is(err, ErrMismatch) {
			t.Errorf("read %q: %v", d, err)
		}

		if _, err := s.Detach(d); err == nil {
			t.Errorf("detach %q: no error", d)
		}
	}

	if left, err := os.ReadDir(s.TempDir()); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestSpoiltBlobIsNoticed(t *testing.T) {
	s := openStore(t, t.TempDir())
	const data = "some content"
	desc := describe(data)
	for _, spoilt := range []string{"some kontent", "some", data + data} {
		if err := put(t, s, desc, data); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path(desc.Digest), []byte(spoilt), 0o600); err != nil {
			t.Fatal(err)
		}

		if _, err := s.ReadAll(desc, 100); !errors.Is(err, ErrMismatch) {
			t.Errorf("%q: %v, want %v", spoilt, err, ErrMismatch)
		}
		if _, err := s.Detach(desc.Digest); err != nil {
			t.Fatal(err)
		}
	}
}

func TestImages(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	if list, err := s.Images(); err != nil || len(list) != 0 {
		t.Errorf("new store: %v, %v", list, err)
	}

	m := describe("manifest")
	want := []Image{{
		ID: digest.FromString("config"), Tags: map[string]digest.Digest{"h.io/a:1": m.Digest, "h.io/a:2": m.Digest},
		Digests: []string{"h.io/a@" + m.Digest.String()}, Targets: []Target{{Root: m, Manifest: m}},
	}}
	if err := s.SetImages(want, true); err != nil {
		t.Fatal(err)
	}

	got, err := openStore(t, root).Images()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("images %+v, %v", got, err)
	}

	var index ocispec.Index
	data, err := os.ReadFile(filepath.Join(root, "index.json"))
	if err == nil {
		err = json.Unmarshal(data, &index)
	}
	if err != nil || len(index.Manifests) != 2 || index.Manifests[0].Annotations[ocispec.AnnotationRefName] != "h.io/a:1" {
		t.Errorf("index %s, %v", data, err)
	}

	for _, bad := range []string{"", "{", `{"version":99}`, `[]`} {
		if err := os.WriteFile(filepath.Join(root, imagesFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if list, err := s.Images(); !errors.Is(err, ErrRecord) || len(list) != 0 {
			t.Errorf("%q: %v, %v", bad, list, err)
		}

		if list, err := s.Images(); err != nil || len(list) != 0 {
			t.Errorf("after %q was moved aside: %v, %v", bad, list, err)
		}
	}
}

// TestRecentImages checks which of the two records counts.
func TestRecentImages(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	image := func(name string) []Image {
		return []Image{{ID: digest.FromString(name), Targets: []Target{}}}
	}

	check := func(when, want string) {
		t.Helper()
		got, err := openStore(t, root).Images()
		if err != nil || !reflect.DeepEqual(got, image(want)) {
			t.Errorf("%s: %+v, %v, want image %s", when, got, err, want)
		}
	}

	for _, step := range []struct {
		name    string
		durably bool
	}{{"a", false}, {"b", true}, {"c", false}, {"d", false}} {
		if err := s.SetImages(image(step.name), step.durably); err != nil {
			t.Fatal(err)
		}
		check("after a change", step.name)
	}

	if err := os.Truncate(filepath.Join(root, recentFile), 20); err != nil {
		t.Fatal(err)
	}
	check("after a power cut", "b")

	// Changes go on where the record left off.
	s = openStore(t, root)
	if _, err := s.Images(); err != nil {
		t.Fatal(err)
	}

	if err := s.SetImages(image("e"), false); err != nil {
		t.Fatal(err)
	}
	check("after the next change", "e")
}

// TestDoubt checks that a blob in doubt is not here until it is verified.
func TestDoubt(t *testing.T) {
	s := openStore(t, t.TempDir())
	desc := describe("content")
	s.Doubt(desc.Digest, true) // not here: nothing to doubt
	if err := put(t, s, desc, "content"); err != nil {
		t.Fatal(err)
	}

	s.Doubt(desc.Digest, true)
	if s.Has(desc) || !s.Doubtful(desc.Digest) {
		t.Error("a blob in doubt counts")
	}

	if err := s.Verify(t.Context(), desc); err != nil {
		t.Error(err)
	}
	if err := put(t, s, desc, "content"); err != nil || !s.Has(desc) {
		t.Errorf("written anew: %v, here: %v", err, s.Has(desc))
	}

	if err := os.WriteFile(s.path(desc.Digest), []byte("c0ntent"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), desc); !errors.Is(err, ErrMismatch) {
		t.Errorf("spoilt: %v, want %v", err, ErrMismatch)
	}
}
