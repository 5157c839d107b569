package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image"
	"crisp/test/testkit"
)

func other() string {
	if runtime.GOARCH == "amd64" {
		return "arm64"
	}
	return "amd64"
}

func index(descs ...ocispec.Descriptor) ocispec.Index {
	return ocispec.Index{Versioned: imagespec.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: descs}
}

func forPlatform(d ocispec.Descriptor, os, arch, variant string) ocispec.Descriptor {
	d.Platform = &ocispec.Platform{OS: os, Architecture: arch, Variant: variant}
	return d
}

func TestIndexes(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	here, id := r.push("app", "here", ocispec.ImageConfig{User: "right"}, pack(t, text("a", "1")))
	wrong, _ := r.push("app", "wrong", ocispec.ImageConfig{User: "wrong"}, pack(t, text("a", "2")))
	attestation := forPlatform(wrong, "unknown", "unknown", "")
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}

	unmarked := wrong
	unmarked.Annotations = attestation.Annotations
	nested := r.putManifest("app", "", ocispec.MediaTypeImageIndex, index(forPlatform(here, "linux", runtime.GOARCH, "")))
	variant := map[string]string{"amd64": "v1", "arm64": "v8"}[runtime.GOARCH]
	for name, idx := range map[string]ocispec.Index{
		"platforms":       index(forPlatform(wrong, "linux", other(), ""), forPlatform(wrong, "windows", runtime.GOARCH, ""), forPlatform(here, "linux", runtime.GOARCH, "")),
		"attestations":    index(attestation, unmarked, forPlatform(here, "linux", runtime.GOARCH, "")),
		"nested":          index(forPlatform(wrong, "linux", other(), ""), nested),
		"variant":         index(forPlatform(wrong, "linux", runtime.GOARCH, "v99"), forPlatform(here, "linux", runtime.GOARCH, variant)),
		"without":         index(here),
		"first of equals": index(forPlatform(here, "linux", runtime.GOARCH, ""), forPlatform(wrong, "linux", runtime.GOARCH, "")),
	} {
		t.Run(name, func(t *testing.T) {
			desc := r.putManifest("app", "v1", ocispec.MediaTypeImageIndex, idx)
			s := open(t, t.TempDir())
			im := pull(t, s, r.Host+"/app:v1")
			if im.ID != id || im.Manifest != here.Digest {
				t.Errorf("pulled the image of user %q", im.Config.Config.User)
			}

			if want := r.Host + "/app@" + desc.Digest.String(); len(im.RepoDigests) != 1 || im.RepoDigests[0] != want {
				t.Errorf("digests %v, want the index's, %s", im.RepoDigests, want)
			}
		})
	}

	r.putManifest("app", "none", ocispec.MediaTypeImageIndex, index(forPlatform(wrong, "linux", other(), ""), attestation))
	_, err := open(t, t.TempDir()).Pull(t.Context(), r.Host+"/app:none", nil)
	if !errors.Is(err, image.ErrUnsupported) || !strings.Contains(err.Error(), "linux/"+other()) {
		t.Errorf("no platform: %v", err)
	}
}

func TestSameImageInTwoWrappings(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	desc, id := r.push("app", "plain", ocispec.ImageConfig{}, pack(t, text("a", "1")))
	r.putManifest("app", "wrapped", ocispec.MediaTypeImageIndex, index(forPlatform(desc, "linux", runtime.GOARCH, "")))

	root := t.TempDir()
	s := reopen(t, root)
	pull(t, s, r.Host+"/app:plain")
	im := pull(t, s, r.Host+"/app:wrapped")
	if im.ID != id || len(im.RepoTags) != 2 || len(im.RepoDigests) != 2 {
		t.Errorf("image %+v, want two tags and two digests", im)
	}

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, root)
	if again, err := s.Get(id); err != nil || len(again.RepoDigests) != 2 {
		t.Errorf("after reopening: %+v, %v", again, err)
	}

	var idx ocispec.Index
	data, err := os.ReadFile(filepath.Join(root, "index.json"))
	if err == nil {
		err = json.Unmarshal(data, &idx)
	}
	if err != nil || len(idx.Manifests) != 2 {
		t.Errorf("index.json: %s, %v", data, err)
	}
}

func TestZstd(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	plain := archive(t, text("a", random(300_000)))
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}

	w.Write(plain)
	w.Close()
	l := packed{diff: digest.FromBytes(plain), data: buf.Bytes()}
	l.desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd, Digest: r.putBlob("app", l.data), Size: int64(len(l.data))}
	r.push("app", "v1", ocispec.ImageConfig{}, l)
	pull(t, open(t, t.TempDir()), r.Host+"/app:v1")
}

// hostileManifest is what must not be taken for an image, and why.
type hostileManifest struct {
	name string
	doc  any
	kind string // media type, the OCI manifest's if empty
	want error
}

// merge makes one document of several.
func merge(t *testing.T, docs ...any) []byte {
	t.Helper()
	all := map[string]any{}
	for _, d := range docs {
		data, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &all); err != nil {
			t.Fatal(err)
		}
	}

	data, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func hostileManifests(t *testing.T, r *testRegistry) []hostileManifest {
	l := pack(t, text("a", "1"))
	good, _ := r.push("app", "good", ocispec.ImageConfig{}, l)
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: r.putBlob("app", l.data), Size: int64(len(l.data))}
	config := func(change func(*ocispec.Image)) ocispec.Descriptor {
		im := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{l.diff}}}
		change(&im)
		data, err := json.Marshal(im)
		if err != nil {
			t.Fatal(err)
		}
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: r.putBlob("app", data), Size: int64(len(data))}
	}

	fine := config(func(*ocispec.Image) {})
	manifest := func(change func(*ocispec.Manifest)) ocispec.Manifest {
		m := ocispec.Manifest{Versioned: imagespec.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: fine, Layers: []ocispec.Descriptor{layer}}
		change(&m)
		return m
	}

	withLayer := func(change func(*ocispec.Descriptor)) ocispec.Manifest {
		return manifest(func(m *ocispec.Manifest) {
			d := layer
			change(&d)
			m.Layers = []ocispec.Descriptor{d}
		})
	}

	withConfig := func(change func(*ocispec.Image)) ocispec.Manifest {
		return manifest(func(m *ocispec.Manifest) { m.Config = config(change) })
	}
	garbage := []byte("neither tar nor gzip, but long enough to be looked at")
	noise := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: r.putBlob("app", append(garbage, make([]byte, 512)...)), Size: int64(len(garbage) + 512)}
	return []hostileManifest{
		{"schema 1", []byte(`{"schemaVersion":1,"fsLayers":[],"history":[],"signatures":[]}`), "application/vnd.docker.distribution.manifest.v1+prettyjws", image.ErrUnsupported},
		{"schema 1 in disguise", []byte(`{"schemaVersion":2,"fsLayers":[{}],"config":{},"layers":[]}`), "", image.ErrUnsupported},
		{"layers and manifests", merge(t, manifest(func(*ocispec.Manifest) {}), index(good)), "", image.ErrInvalid},
		{"layers and manifests, as index", merge(t, manifest(func(*ocispec.Manifest) {}), index(good)), ocispec.MediaTypeImageIndex, image.ErrInvalid},
		{"neither", []byte(`{"schemaVersion":2}`), "", image.ErrInvalid},
		{"two media types", manifest(func(*ocispec.Manifest) {}), "application/vnd.docker.distribution.manifest.v2+json", image.ErrInvalid},
		{"index called manifest", merge(t, index(good), map[string]string{"mediaType": ocispec.MediaTypeImageManifest}), "", image.ErrInvalid},
		{"manifest called index", merge(t, manifest(func(*ocispec.Manifest) {}), map[string]string{"mediaType": ocispec.MediaTypeImageIndex}), ocispec.MediaTypeImageIndex, image.ErrInvalid},
		{"not JSON", []byte("<html>"), "", image.ErrInvalid},
		{"wrong JSON", []byte(`{"schemaVersion":2,"layers":"x","config":7}`), "", image.ErrInvalid},
		{"artifact", manifest(func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.example.model" }), "", image.ErrUnsupported},
		{"layer of another type", withLayer(func(d *ocispec.Descriptor) { d.MediaType = "text/plain" }), "", image.ErrUnsupported},
		{"encrypted layer", withLayer(func(d *ocispec.Descriptor) { d.MediaType += "+encrypted" }), "", image.ErrUnsupported},
		{"digest with a path", withLayer(func(d *ocispec.Descriptor) { d.Digest = "sha256:../../../../etc/passwd" }), "", image.ErrInvalid},
		{"negative size", withLayer(func(d *ocispec.Descriptor) { d.Size = -1 }), "", image.ErrInvalid},
		{"layer too short", withLayer(func(d *ocispec.Descriptor) { d.Size++ }), "", image.ErrProtocol},
		{"layer too long", withLayer(func(d *ocispec.Descriptor) { d.Size-- }), "", image.ErrProtocol},
		{"layer missing", withLayer(func(d *ocispec.Descriptor) { d.Digest = digest.FromString("none") }), "", image.ErrNotFound},
		{"layer of noise", manifest(func(m *ocispec.Manifest) { m.Layers[0] = noise }), "", image.ErrInvalid},
		{"other content than the configuration says", withConfig(func(im *ocispec.Image) { im.RootFS.DiffIDs[0] = digest.FromString("x") }), "", image.ErrInvalid},
		{"diff ID with a path", withConfig(func(im *ocispec.Image) { im.RootFS.DiffIDs[0] = "sha256:../../x" }), "", image.ErrInvalid},
		{"more diff IDs than layers", withConfig(func(im *ocispec.Image) { im.RootFS.DiffIDs = append(im.RootFS.DiffIDs, l.diff) }), "", image.ErrInvalid},
		{"other architecture", withConfig(func(im *ocispec.Image) { im.Architecture = other() }), "", image.ErrUnsupported},
		{"other system", withConfig(func(im *ocispec.Image) { im.OS = "windows" }), "", image.ErrUnsupported},
		{"huge configuration", manifest(func(m *ocispec.Manifest) { m.Config.Size = 1 << 40 }), "", image.ErrInvalid},
		{"too many layers", manifest(func(m *ocispec.Manifest) {
			for range 501 {
				m.Layers = append(m.Layers, layer)
			}
		}), "", image.ErrUnsupported},
		{"index of huge manifest", index(func() ocispec.Descriptor { d := good; d.Size = 1 << 40; return d }()), ocispec.MediaTypeImageIndex, image.ErrInvalid},
		{"index of wrong size", index(func() ocispec.Descriptor { d := good; d.Size++; return d }()), ocispec.MediaTypeImageIndex, image.ErrInvalid},
		{"index of digest with a path", index(func() ocispec.Descriptor { d := good; d.Digest = "sha256:../x"; return d }()), ocispec.MediaTypeImageIndex, image.ErrInvalid},
	}
}

// TestHostileManifests pulls what must not be taken for an image.
func TestHostileManifests(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	for _, c := range hostileManifests(t, r) {
		t.Run(c.name, func(t *testing.T) {
			kind := c.kind
			if kind == "" {
				kind = ocispec.MediaTypeImageManifest
			}

			data, ok := c.doc.([]byte)
			if !ok {
				data, _ = json.Marshal(c.doc)
			}

			r.onRequest(func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.HasSuffix(req.URL.Path, "/manifests/bad") {
					return false
				}
				w.Header().Set("Content-Type", kind)
				w.Write(data)
				return true
			})

			defer r.onRequest(nil)
			root := t.TempDir()
			s := open(t, root)
			_, err := s.Pull(t.Context(), r.Host+"/app:bad", nil)
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			checkEmpty(t, s, root)
		})
	}

	nested, _ := r.push("app", "good", ocispec.ImageConfig{})
	for range 8 {
		nested = r.putManifest("app", "deep", ocispec.MediaTypeImageIndex, index(nested))
	}
	if _, err := open(t, t.TempDir()).Pull(t.Context(), r.Host+"/app:deep", nil); !errors.Is(err, image.ErrInvalid) {
		t.Errorf("indexes in indexes: %v, want %v", err, image.ErrInvalid)
	}
}

// checkEmpty checks that a pull that failed has left no image, no damaged
// content and no temporary files. Content that was verified may stay.
func checkEmpty(t *testing.T, s *image.Service, root string) {
	t.Helper()
	if l := s.List(); len(l) != 0 {
		t.Errorf("images %+v", l)
	}

	waitFor(t, "the temporary directory to be empty", func() bool {
		left, _ := os.ReadDir(filepath.Join(root, "tmp"))
		return len(left) == 0
	})

	blobs, err := os.ReadDir(filepath.Join(root, "blobs/sha256"))
	if err != nil {
		t.Fatal(err)
	}

	for _, b := range blobs {
		data, err := os.ReadFile(filepath.Join(root, "blobs/sha256", b.Name()))
		if err != nil || digestHex(data) != b.Name() {
			t.Errorf("blob %s has other content, %v", b.Name(), err)
		}
	}
}

func TestSpoiledDownloads(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	l := pack(t, text("a", random(200_000)))
	desc, id := r.push("app", "v1", ocispec.ImageConfig{}, l)
	flipped := bytes.Clone(l.data)
	flipped[len(flipped)/2] ^= 1

	for _, c := range []struct {
		name, path string
		data       []byte
		want       error
	}{
		{"bit flipped in a layer", digestHex(l.data), flipped, image.ErrInvalid},
		{"layer truncated", digestHex(l.data), l.data[:1000], image.ErrProtocol},
		{"other configuration", id[7:], []byte(`{}`), image.ErrProtocol},
		{"other manifest", desc.Digest.Encoded(), []byte(`{"schemaVersion":2,"config":{},"layers":[]}`), image.ErrProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.onRequest(func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.HasSuffix(req.URL.Path, c.path) {
					return false
				}
				w.Write(c.data)
				return true
			})

			defer r.onRequest(nil)
			root := t.TempDir()
			s := open(t, root)
			ref := fmt.Sprintf("%s/app@%s", r.Host, desc.Digest)
			if _, err := s.Pull(t.Context(), ref, nil); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}

			checkEmpty(t, s, root)
			r.onRequest(nil)
			if im := pull(t, s, ref); im.ID != id {
				t.Errorf("then pulled %s, want %s", im.ID, id)
			}
		})
	}
}

func TestPullErrors(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	s := open(t, t.TempDir())
	closed := newRegistry(t)
	closed.server.Close()

	for ref, want := range map[string]error{
		"":                   image.ErrInvalidReference,
		"UPPER/x/Y":          image.ErrInvalidReference,
		r.Host + "/nope:x":   image.ErrNotFound,
		closed.Host + "/app": image.ErrUnavailable,
	} {
		if _, err := s.Pull(t.Context(), ref, nil); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", ref, err, want)
		}
	}

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), r.Host+"/app", nil); !errors.Is(err, image.ErrClosed) {
		t.Errorf("after closing: %v, want %v", err, image.ErrClosed)
	}
}

// TestForeignURLsAreNotFollowed pulls a manifest that names another place for
// its layer.
func TestForeignURLsAreNotFollowed(t *testing.T) {
	testkit.Root(t)
	r, evil := newRegistry(t), newRegistry(t)
	l := pack(t, text("a", "1"))
	l.desc = ocispec.Descriptor{
		MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", // old images have it
		Digest:    digest.FromBytes(l.data), Size: int64(len(l.data)), URLs: []string{evil.server.URL + "/steal"},
	}

	r.push("app", "v1", ocispec.ImageConfig{}, l)
	_, err := open(t, t.TempDir()).Pull(t.Context(), r.Host+"/app:v1", &image.Auth{Username: "u", Password: "p"})
	if !errors.Is(err, image.ErrNotFound) {
		t.Errorf("error %v, want %v", err, image.ErrNotFound)
	}

	if n := evil.count(""); n != 0 {
		t.Errorf("the other host was asked %d times", n)
	}
}

// TestUnreadableRecord checks that a lost record costs no download.
func TestUnreadableRecord(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("app", "v1", ocispec.ImageConfig{}, pack(t, text("a", "1")))
	root := t.TempDir()
	s := reopen(t, root)
	pull(t, s, r.Host+"/app:v1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(filepath.Join(root, "images.json"), []byte(`{"version":1,"images":[{`), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, root)
	if n := len(s.List()); n != 0 {
		t.Errorf("%d images", n)
	}

	blobs := r.count("GET", "/blobs/")
	pull(t, s, r.Host+"/app:v1")
	if n := r.count("GET", "/blobs/") - blobs; n != 0 {
		t.Errorf("%d blobs were fetched again", n)
	}

	if aside, _ := filepath.Glob(filepath.Join(root, "images.json.bad-*")); len(aside) != 1 {
		t.Errorf("set aside: %v", aside)
	}
}
