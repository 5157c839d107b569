package image

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestDerive makes configurations of new images.
func TestDerive(t *testing.T) {
	const diff = digest.Digest("sha256:new")
	for name, c := range map[string]struct {
		old, diff string
		// history is what the entries have as created_by, diffs the layers; other is what
		// must be in the text, never what must not.
		history, diffs []string
		other, never   string
	}{
		"usual": {`{"architecture":"amd64","config":{"Cmd":["a"],"X":1},"rootfs":{"type":"layers","diff_ids":["one"]},"history":[{"created_by":"a"},{"created_by":"b","empty_layer":true}],"moby.x":{"y":[1]}}`,
			"new", []string{"a", "b", "me"}, []string{"one", "new"}, `"moby.x":{"y":[1]}`, "\x00"},
		"no change": {`{"rootfs":{"type":"layers","diff_ids":["one"]},"history":[{"created_by":"a"}],"created":"2020-01-01T00:00:00Z"}`,
			"", []string{"a", "me"}, []string{"one"}, `"empty_layer":true`, "2020"},
		"no history":    {`{"rootfs":{"type":"layers","diff_ids":["one","two"]}}`, "new", []string{"", "", "me"}, []string{"one", "two", "new"}, "", "\x00"},
		"short history": {`{"rootfs":{"type":"layers","diff_ids":["one","two"]},"history":[{"created_by":"a"}]}`, "new", []string{"a", "", "me"}, []string{"one", "two", "new"}, "", "\x00"},
		"no layers":     {`{"history":null}`, "new", []string{"me"}, []string{"new"}, "", "\x00"},
		"of odd case":   {`{"RootFS":{"type":"layers","diff_ids":["one"]},"HISTORY":[{"created_by":"a"}],"rootfſ":null}`, "new", []string{"a", "me"}, []string{"one", "new"}, "", "HISTORY"},
	} {

		h := ocispec.History{CreatedBy: "me", EmptyLayer: c.diff == ""}
		added := diff
		if c.diff == "" {
			added = ""
		}
		data, err := derive([]byte(c.old), added, h)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got ocispec.Image
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		var history, diffs []string
		for _, h := range got.History {
			history = append(history, h.CreatedBy)
		}
		for _, d := range got.RootFS.DiffIDs {
			diffs = append(diffs, strings.TrimPrefix(string(d), "sha256:"))
		}
		if !slices.Equal(history, c.history) || !slices.Equal(diffs, c.diffs) || !strings.Contains(string(data), c.other) || strings.Contains(string(data), c.never) {
			t.Errorf("%s: %s", name, data)
		}
	}

	for _, old := range []string{"", "[]", `{"history":[1]}`, `{"history":{}}`, `{"rootfs":[]}`} {
		if data, err := derive([]byte(old), diff, ocispec.History{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %s, error %v", old, data, err)
		}
	}
}

func TestOCIType(t *testing.T) {
	for docker, want := range map[string]string{
		"application/vnd.docker.image.rootfs.diff.tar.gzip":         ocispec.MediaTypeImageLayerGzip,
		"application/vnd.docker.image.rootfs.diff.tar.zstd":         ocispec.MediaTypeImageLayerZstd,
		"application/vnd.docker.image.rootfs.diff.tar":              ocispec.MediaTypeImageLayer,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		ocispec.MediaTypeImageLayerZstd:                             ocispec.MediaTypeImageLayerZstd,
	} {
		if got := ociType(docker); got != want {
			t.Errorf("%s is %s, want %s", docker, got, want)
		}
	}
}

// TestLoosen stores a layer as it is that would be too small compressed.
func TestLoosen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "layer")
	w, err := newPacker(path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("again ", 1<<20)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}

	packed := archived{path: path, size: w.file.size, digest: digest.NewDigest(digest.SHA256, w.file.sum)}
	if packed.size > w.size/100 || w.size != int64(len(text)) {
		t.Fatalf("%d bytes became %d", w.size, packed.size)
	}

	f, err := loosen(t.Context(), packed)
	if err != nil || f.size != w.size || f.digest != digest.NewDigest(digest.SHA256, w.sum) || f.digest != digest.FromString(text) {
		t.Errorf("unpacked to %+v, %v", f, err)
	}
	if data, err := os.ReadFile(f.path); err != nil || string(data) != text {
		t.Errorf("it is %.20q, %v", data, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the compressed one: %v", err)
	}
}
