package image_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image"
)

// TestPush pushes an image that a commit made, and pulls it on another node.
func TestPush(t *testing.T) {
	r := newRegistry(t)
	base := pack(t, text("below", random(100_000)))
	r.push("base", "v1", ocispec.ImageConfig{}, base)
	s := open(t, t.TempDir())
	im := pull(t, s, r.Host+"/base:v1")
	name := r.Host + "/made/app:v2"
	made := commit(t, s, im.ID, name, text("above", random(50_000)))

	out, err := s.Push(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := r.Host + "/made/app@" + made.Manifest.String(); out.Name != want || out.Sent == 0 {
		t.Errorf("pushed %+v, want %s", out, want)
	}
	other := pull(t, open(t, t.TempDir()), name)
	if other.ID != made.ID || other.Manifest != made.Manifest || !slices.Equal(other.RepoDigests, made.RepoDigests) {
		t.Errorf("another node has %+v, want %+v", other, made)
	}
	if again, err := s.Push(t.Context(), out.Name, nil); err != nil || again.Sent != 0 || again.Name != out.Name {
		t.Errorf("again, by digest: %+v, %v", again, err)
	}
	if n := r.count("PATCH"); n != 0 {
		t.Errorf("%d uploads in parts", n)
	}
	if err := s.Remove(t.Context(), name); err != nil {
		t.Errorf("an image that was pushed cannot be removed: %v", err)
	}
}

// TestPushOfIndex pushes an image of an index, whose other image the registry has or not.
func TestPushOfIndex(t *testing.T) {
	from, to := newRegistry(t), newRegistry(t)
	note, _ := from.push("app", "note", ocispec.ImageConfig{}, pack(t, text("f", "note")))
	note.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"} // and no platform
	own, _ := from.push("app", "own", ocispec.ImageConfig{}, pack(t, text("f", "own")))
	foreign, _ := from.push("app", "foreign", ocispec.ImageConfig{}, pack(t, text("f", "foreign")))
	own.Platform, foreign.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	root := from.putManifest("app", "v1", ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: imagespec.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{own, foreign, note},
	})

	s := open(t, t.TempDir())
	name := from.Host + "/app:v1"
	pull(t, s, name)
	if out, err := s.Push(t.Context(), name, nil); err != nil || out.Name != from.Host+"/app@"+root.Digest.String() || out.Sent != 0 {
		t.Errorf("back to where it is from: %+v, %v", out, err)
	}

	// Elsewhere: the same name leads to another registry.
	s.Choose(leading(t, from.Host, to.Host))
	var present *ocispec.Descriptor
	to.onRequest(func(w http.ResponseWriter, req *http.Request) bool {
		return present != nil && strings.HasSuffix(req.URL.Path, present.Digest.String())
	})
	for _, test := range []struct {
		present *ocispec.Descriptor
		says    string
	}{
		{nil, foreign.Digest.String() + ", which index " + root.Digest.String() + " lists for linux/s390x"},
		{&foreign, note.Digest.String() + ", which index " + root.Digest.String() + " lists"},
	} {
		present = test.present
		_, err := s.Push(t.Context(), name, nil)
		if !errors.Is(err, image.ErrNotFound) || !strings.HasSuffix(err.Error(), "nor this node has image "+test.says) || to.count("POST")+to.count("PUT") > 0 {
			t.Errorf("to a registry without one of its images: %v", err)
		}
	}
}

// TestPushRefuses is about what cannot be pushed, and requires that nothing of it is left
// in the registry.
func TestPushRefuses(t *testing.T) {
	r := newRegistry(t)
	layer := pack(t, text("f", random(100_000)))
	r.push("app", "v1", ocispec.ImageConfig{}, layer)
	root := t.TempDir()
	s := open(t, root)
	im := pull(t, s, r.Host+"/app:v1")

	for name, want := range map[string]error{
		r.Host + "/app:v2": image.ErrNotFound, r.Host + "/app@" + digest.FromString("x").String(): image.ErrNotFound,
		"Wrong/Name": image.ErrInvalidReference, im.ID: image.ErrNotFound,
	} {
		if _, err := s.Push(t.Context(), name, nil); !errors.Is(err, want) {
			t.Errorf("push of %s: %v, want %v", name, err, want)
		}
	}
	if err := s.TryPush(t.Context(), r.Host+"/app:v3", nil); err != nil {
		t.Errorf("a try: %v", err)
	}
	r.onRequest(func(w http.ResponseWriter, req *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	if err := s.TryPush(t.Context(), r.Host+"/app:v3", nil); !errors.Is(err, image.ErrDenied) {
		t.Errorf("a try where it is denied: %v", err)
	}
	r.onRequest(nil)

	// A blob that is damaged on this node, and that the registry does not have.
	if err := rotBit(filepath.Join(root, "blobs/sha256", digestHex(layer.data))); err != nil {
		t.Fatal(err)
	}
	to := newRegistry(t)
	s.Choose(leading(t, r.Host, to.Host))
	if _, err := s.Push(t.Context(), r.Host+"/app:v1", nil); !errors.Is(err, image.ErrInvalid) || !strings.Contains(err.Error(), digestHex(layer.data)) {
		t.Errorf("push of damage: %v", err)
	}
	if to.count("PUT", "/manifests/") > 0 || to.count("DELETE", "/uploads/") != 1 {
		t.Error("the registry has a manifest, or an upload was not given up")
	}
}

// leading writes a configuration by which the images of a registry are those of another.
func leading(t *testing.T, from, to string) image.Choices {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, from), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, from, "hosts.toml"), []byte("server = \"http://"+to+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return image.Choices{RegistryConfigDirs: []string{dir}}
}

// TestPushIsInterrupted cancels a push whose registry does not answer.
func TestPushIsInterrupted(t *testing.T) {
	r := newRegistry(t)
	r.push("app", "v1", ocispec.ImageConfig{}, pack(t, text("f", random(1000))))
	s := open(t, t.TempDir())
	pull(t, s, r.Host+"/app:v1")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.onRequest(func(_ http.ResponseWriter, req *http.Request) bool {
		cancel()
		_, _ = io.Copy(io.Discard, req.Body)
		<-req.Context().Done()
		return true
	})
	began := time.Now()
	if _, err := s.Push(ctx, r.Host+"/app:v1", nil); !errors.Is(err, context.Canceled) || time.Since(began) > 10*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}
