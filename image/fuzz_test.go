package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image/registry"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// FuzzDocument reads manifests and indexes as they come from a registry.
func FuzzDocument(f *testing.F) {
	descriptor := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":2}`, ocispec.MediaTypeImageConfig, someDigest)
	for _, doc := range []string{
		`{"schemaVersion":2,"config":` + descriptor + `,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"` + someDigest + `","size":1}]}`,
		`{"schemaVersion":2,"manifests":[` + descriptor + `]}`,
		`{"schemaVersion":2,"manifests":[{"digest":"` + someDigest + `","size":1,"platform":{"os":"linux","architecture":"amd64","variant":"v1"}}]}`,
		`{"schemaVersion":2,"manifests":[{"annotations":{"vnd.docker.reference.type":"x"}},{}]}`,
		`{"schemaVersion":2,"Manifests":[],"layers":[]}`, `{"schemaVersion":1,"fsLayers":[]}`, `{"layers":[{"size":-1}]}`, `[]`, `{"manifests":null}`,
	} {
		f.Add([]byte(doc), ocispec.MediaTypeImageManifest)
		f.Add([]byte(doc), ocispec.MediaTypeImageIndex)
		f.Add([]byte(doc), "")
	}

	f.Fuzz(func(t *testing.T, data []byte, kind string) {
		d, err := parse(data, kind)
		if err != nil {
			known(t, err)
			return
		}

		n, err := countValues(bytes.NewReader(data))
		if err == nil && n < len(d.children)+len(d.layers) {
			t.Errorf("%d values counted in a document of %d", n, len(d.children)+len(d.layers))
		}
		if d.isIndex {
			chosen, err := d.choose(anyPlatform)
			known(t, err)
			if err == nil && (chosen.Digest.Validate() != nil || chosen.Size < 0 || chosen.Size > registry.MaxDocument) {
				t.Errorf("chose %+v", chosen)
			}
			return
		}

		err = d.checkImage()
		known(t, err)
		for _, l := range d.layers {
			if err == nil && (l.Digest.Validate() != nil || l.Size < 0) {
				t.Errorf("layer %+v", l)
			}
		}
	})
}

// known wants an error of a class that the caller of a pull can be told.
func known(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
		t.Errorf("error without a class: %v", err)
	}
	if err != nil && len(err.Error()) > 20_000 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

// FuzzConfig reads configurations.
func FuzzConfig(f *testing.F) {
	for _, doc := range []string{
		fmt.Sprintf(`{"os":"linux","architecture":%q,"rootfs":{"type":"layers","diff_ids":[%q]},"config":{"Env":["A=b"],"Volumes":{"/x":{}}},"history":[{}]}`, runtime.GOARCH, someDigest),
		`{"os":"windows"}`, `{"rootfs":{"diff_ids":["x"]}}`, `{"config":{"Labels":{"a":"b"},"User":"u"}}`, `{"config":null}`, `7`,
	} {
		f.Add([]byte(doc), 1)
		f.Add([]byte(doc), 0)
	}
	f.Fuzz(func(t *testing.T, data []byte, layers int) {
		im, err := parseConfig(data, layers, anyPlatform)
		if err != nil {
			known(t, err)
			return
		}

		if len(im.RootFS.DiffIDs) != layers || len(im.History) > 0 || len(im.Config.Labels) > 0 {
			t.Errorf("%+v of %d layers", im, layers)
		}
		kept, err := json.Marshal(im)
		if err != nil {
			t.Fatal(err)
		}

		// Escapes may make six bytes of one, and diff IDs come on top.
		if len(kept) > 6*maxKept+100*maxLayers {
			t.Errorf("%d bytes are kept", len(kept))
		}
	})
}

func TestCountValues(t *testing.T) {
	for text, want := range map[string]int{
		"": 0, "{}": 1, `{"a":[1,2]}`: 4, `"{[,:"`: 0, `"\"{"`: 0, `"\\",{`: 2, `{"a\\\"b":1}`: 2,
	} {
		if n, err := countValues(bytes.NewReader([]byte(text))); err != nil || n != want {
			t.Errorf("%s has %d values, %v, want %d", text, n, err, want)
		}
	}
	if _, err := countValues(bytes.NewReader(bytes.Repeat([]byte(","), maxValues+1))); !errors.Is(err, ErrInvalid) {
		t.Errorf("too many values: %v", err)
	}
}

func anyPlatform(*platform) (int, bool) { return 0, true }

// FuzzArchive reads archives of images, as far as their lists of images.
func FuzzArchive(f *testing.F) {
	packed := func(files ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 1; i < len(files); i += 2 {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: files[i-1], Mode: 0o600, Size: int64(len(files[i]))}); err != nil {
				f.Fatal(err)
			}
			if _, err := w.Write([]byte(files[i])); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	entry := `{"digest":"` + someDigest + `","size":2,"annotations":{"io.containerd.image.name":"a:1"}}`
	f.Add(packed("oci-layout", "{}", "index.json", `{"manifests":[`+entry+`]}`), "")
	f.Add(packed("oci-layout", "{}", "index.json", `{"manifests":[{"digest":"x","size":-1}]}`), "name")
	f.Add(packed("manifest.json", `[{"Config":"c","RepoTags":["a"],"Layers":["../c","l"]}]`, "c", "{}", "l", "\x1f\x8b"), "")
	f.Add(packed("manifest.json", `[{"Config":"c","Layers":[]}]`, "c", "{}"), "b")
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0}, "")

	s, err := Open(Options{Root: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		a, err := readArchive(t.Context(), bytes.NewReader(data), t.TempDir())
		if err != nil {
			return
		}
		list, err := s.imagesOf(t.Context(), a, name)
		if err != nil {
			if !errors.Is(err, ErrInvalidReference) || len(err.Error()) > 20_000 {
				known(t, err)
			}
			return
		}

		for _, im := range list {
			if im.ref.Repo == "" || im.root.Digest.Validate() != nil || im.root.Size < 0 || im.root.Size > registry.MaxDocument {
				t.Errorf("image %+v", im)
			}
		}
		for name, file := range a.files {
			if filepath.Dir(file.path) != a.dir || !filepath.IsLocal(name) {
				t.Errorf("%q is in %s", name, file.path)
			}
		}
	})
}
