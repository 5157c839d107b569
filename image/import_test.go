package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image"
	"crisp/test/testkit"
)

// exported is an archive of images.
func exported(t *testing.T, s *image.Service, refs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Export(t.Context(), refs, &b); err != nil {
		t.Fatalf("export %q: %v", refs, err)
	}
	return b.Bytes()
}

// imported imports an archive into a new store.
func imported(t *testing.T, data []byte, o image.ImportOptions) (*image.Service, []image.Imported) {
	t.Helper()
	s := open(t, t.TempDir())
	list, err := s.Import(t.Context(), bytes.NewReader(data), o)
	if err != nil {
		t.Fatalf("import: %v", err)
	}
	return s, list
}

// files lists the files of an archive.
func files(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for name, e := range testkit.Entries(t, bytes.NewReader(data)) {
		out[name] = e.Data
	}
	return out
}

func zstandard(t *testing.T, data []byte, o ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, o...)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// TestExportAndImport moves images to another store, where they are the same under the
// same names, and survive a restart.
func TestExportAndImport(t *testing.T) {
	r := newRegistry(t)
	base := pack(t, dir("etc"), text("etc/os", "base"))
	desc, id := r.push("team/app", "1", ocispec.ImageConfig{Cmd: []string{"run"}}, base, pack(t, text("app", "one")))
	r.push("team/other", "2", ocispec.ImageConfig{}, base)
	from := open(t, t.TempDir())
	app, other := r.Host+"/team/app:1", r.Host+"/team/other:2"
	was := pull(t, from, app)
	pull(t, from, other)

	data := exported(t, from, app, other, app)
	if !bytes.Equal(data, exported(t, from, app, other)) {
		t.Error("the same images make different archives")
	}
	for name, packed := range map[string][]byte{"tar": data, "gzip": gzipped(t, data), "zstd": zstandard(t, data)} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			list, err := s.Import(t.Context(), bytes.NewReader(packed), image.ImportOptions{})
			if err != nil || len(list) != 2 || list[0] != (image.Imported{Name: app, ID: id}) {
				t.Fatalf("imported %+v, %v", list, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}

			s = open(t, root)
			for _, ref := range []string{app, r.Host + "/team/app@" + desc.Digest.String(), id} {
				im, err := s.Get(ref)
				if err != nil || im.ID != was.ID || im.Config.Config.Cmd[0] != "run" || im.Pinned || fmt.Sprint(im.RepoTags, im.RepoDigests) != fmt.Sprint(was.RepoTags, was.RepoDigests) {
					t.Errorf("%s is %+v, %v, was %+v", ref, im, err, was)
				}
			}
			if again := exported(t, s, app, other); !bytes.Equal(again, data) {
				t.Error("exported again it is another archive")
			}
			if done, err := s.Check(t.Context(), false, func(d image.Damage) { t.Errorf("damage: %+v", d) }); err != nil || done.Layers != 2 {
				t.Errorf("checked %+v, %v", done, err)
			}
		})
	}
	if n := r.count("GET", "/blobs/"); n != 4 {
		t.Errorf("%d blobs were fetched, want 4: an import asks the registry", n)
	}
}

// TestExportOfIndex keeps the digest under which an image of several platforms is known.
func TestExportOfIndex(t *testing.T) {
	r := newRegistry(t)
	m, id := r.push("app", "", ocispec.ImageConfig{}, pack(t, text("a", "a")))
	m.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	elsewhere, _ := r.push("app", "", ocispec.ImageConfig{Cmd: []string{"other"}}, pack(t, text("b", "b")))
	elsewhere.Platform = &ocispec.Platform{OS: "windows", Architecture: "arm"}
	index := r.putManifest("app", "1", ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: imagespec.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{elsewhere, m},
	})
	from := open(t, t.TempDir())
	pull(t, from, r.Host+"/app:1")

	s, _ := imported(t, exported(t, from, id), image.ImportOptions{})
	for _, ref := range []string{r.Host + "/app:1", r.Host + "/app@" + index.Digest.String()} {
		if im, err := s.Get(ref); err != nil || im.ID != id {
			t.Errorf("%s is %+v, %v", ref, im, err)
		}
	}
}

// dockerArchive is an archive of docker save: layers without compression, and no
// manifest of the image.
func dockerArchive(t *testing.T, tags []string, layers ...[]byte) (data []byte, id string) {
	t.Helper()
	im := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers"}}
	all := []file{}
	var names []string
	for i, l := range layers {
		im.RootFS.DiffIDs = append(im.RootFS.DiffIDs, digest.FromBytes(l))
		names = append(names, fmt.Sprintf("layer%d/layer.tar", i))
		all = append(all, text(names[i], string(l)))
	}

	config, err := json.Marshal(im)
	if err != nil {
		t.Fatal(err)
	}
	list, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": tags, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, text("config.json", string(config)), text("manifest.json", string(list)))
	return archive(t, all...), digest.FromBytes(config).String()
}

// TestImportOfDocker gives images of docker save the names that docker means.
func TestImportOfDocker(t *testing.T) {
	plain := archive(t, text("a", "a"))
	data, id := dockerArchive(t, []string{"busybox:1", "ghcr.io/team/app:2"}, plain, archive(t, text("b", "b")))
	s, list := imported(t, data, image.ImportOptions{Pin: true})
	if len(list) != 2 || list[0] != (image.Imported{Name: "docker.io/library/busybox:1", ID: id}) {
		t.Fatalf("imported %+v", list)
	}
	for _, ref := range []string{"busybox:1", "docker.io/library/busybox:1", "ghcr.io/team/app:2", id} {
		if im, err := s.Get(ref); err != nil || im.ID != id || !im.Pinned {
			t.Errorf("%s is %+v, %v", ref, im, err)
		}
	}
	again, _ := imported(t, exported(t, s, id), image.ImportOptions{})
	if im, err := again.Get("busybox:1"); err != nil || im.ID != id || im.Pinned {
		t.Errorf("elsewhere it is %+v, %v", im, err)
	}

	unnamed, id := dockerArchive(t, nil, plain)
	if _, err := s.Import(t.Context(), bytes.NewReader(unnamed), image.ImportOptions{}); !errors.Is(err, image.ErrInvalidReference) || !strings.Contains(err.Error(), "--name") {
		t.Errorf("without a name: %v", err)
	}
	if list, err := s.Import(t.Context(), bytes.NewReader(unnamed), image.ImportOptions{Name: "mine"}); err != nil || list[0] != (image.Imported{Name: "docker.io/library/mine:latest", ID: id}) {
		t.Errorf("with a name: %+v, %v", list, err)
	}
}

// TestForeignTools reads what another library writes, and has it read what is exported.
func TestForeignTools(t *testing.T) {
	r := newRegistry(t)
	r.push("app", "1", ocispec.ImageConfig{Cmd: []string{"run"}}, pack(t, text("a", "a")), pack(t, text("b", "b")))
	from := open(t, t.TempDir())
	was := pull(t, from, r.Host+"/app:1")
	path := filepath.Join(t.TempDir(), "images.tar")
	if err := os.WriteFile(path, exported(t, from, r.Host+"/app:1"), 0o600); err != nil {
		t.Fatal(err)
	}

	tag, err := name.NewTag(r.Host + "/app:1")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := tarball.ImageFromPath(path, &tag) // as docker load
	if err != nil {
		t.Fatal(err)
	}
	if id, err := theirs.ConfigName(); err != nil || id.String() != was.ID {
		t.Errorf("for another tool it is %v, %v, want %s", id, err, was.ID)
	}
	if err := validate.Image(theirs); err != nil {
		t.Error(err)
	}

	var saved bytes.Buffer
	short, err := name.NewTag("team/app:2")
	if err == nil {
		err = tarball.Write(short, theirs, &saved) // as docker save
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, list := imported(t, saved.Bytes(), image.ImportOptions{}); len(list) != 1 || list[0] != (image.Imported{Name: "docker.io/team/app:2", ID: was.ID}) {
		t.Errorf("of another tool's archive were imported %+v, want %s", list, was.ID)
	}
}

// TestPinOutlivesPull keeps what was pinned once, also after a restart and a pull.
func TestPinOutlivesPull(t *testing.T) {
	r := newRegistry(t)
	r.push("app", "1", ocispec.ImageConfig{}, pack(t, text("a", "a")))
	ref, root := r.Host+"/app:1", t.TempDir()
	s := open(t, root)
	pull(t, s, ref)
	data := exported(t, s, ref)
	if _, err := s.Import(t.Context(), bytes.NewReader(data), image.ImportOptions{Pin: true}); err != nil {
		t.Fatal(err)
	}
	pull(t, s, ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if im, err := open(t, root).Get(ref); err != nil || !im.Pinned {
		t.Errorf("it is %+v, %v", im, err)
	}
}

// TestImportRefuses leaves nothing of archives that are damaged, malformed or hostile.
func TestImportRefuses(t *testing.T) {
	r := newRegistry(t)
	r.push("app", "1", ocispec.ImageConfig{}, pack(t, text("a", strings.Repeat("a", 10_000))))
	from := open(t, t.TempDir())
	ref := r.Host + "/app:1"
	pull(t, from, ref)
	good := exported(t, from, ref)
	changed := func(change func(map[string][]byte)) []byte {
		all := files(t, good)
		change(all)
		var list []file
		for name, data := range all {
			list = append(list, text(name, string(data)))
		}
		return archive(t, list...)
	}
	biggest := func(all map[string][]byte) string { // the layer, or else the configuration
		best := ""
		for name, data := range all {
			if strings.HasPrefix(name, "blobs/") && !bytes.HasPrefix(data, []byte("{")) {
				best = name
			}
		}
		return best
	}
	link := func(kind byte) file {
		return file{Header: tar.Header{Name: "index.json", Typeflag: kind, Linkname: "/etc/passwd"}}
	}
	docker, _ := dockerArchive(t, []string{"a"}, archive(t, text("a", "a")))

	for name, tt := range map[string]struct {
		data []byte
		want error
		text string
	}{
		"empty":             {nil, image.ErrUnsupported, "neither"},
		"no archive":        {bytes.Repeat([]byte("hello "), 1000), image.ErrInvalid, ""},
		"truncated":         {good[:len(good)/2], image.ErrInvalid, ""},
		"truncated gzip":    {gzipped(t, good)[:1000], image.ErrInvalid, ""},
		"bad checksum":      {append(gzipped(t, good)[:len(gzipped(t, good))-6], 1, 2, 3, 4, 5, 6), image.ErrInvalid, ""},
		"something follows": {append(bytes.Clone(good), make([]byte, 2<<20)...), image.ErrInvalid, "follows"},
		"xz":                {[]byte("\xfd7zXZ\x00 and more"), image.ErrUnsupported, ""},
		"a large window":    {zstandard(t, bytes.Repeat(good, 2000), zstd.WithWindowSize(64<<20)), image.ErrInvalid, "--long"},
		"no images":         {changed(func(all map[string][]byte) { all["index.json"] = []byte(`{"manifests":[]}`) }), image.ErrInvalid, "no images"},
		"an index of junk":  {changed(func(all map[string][]byte) { all["index.json"] = []byte(`{"manifests":7}`) }), image.ErrInvalid, "index.json"},
		"values":            {changed(func(all map[string][]byte) { all["index.json"] = []byte(strings.Repeat("[", 1<<20)) }), image.ErrInvalid, "values"},
		"a large index":     {changed(func(all map[string][]byte) { all["index.json"] = make([]byte, 5<<20) }), image.ErrInvalid, "limit"},
		"another layer":     {changed(func(all map[string][]byte) { all[biggest(all)][20] ^= 1 }), image.ErrInvalid, ""},
		"a short layer":     {changed(func(all map[string][]byte) { all[biggest(all)] = []byte("short") }), image.ErrInvalid, ""},
		"no layer":          {changed(func(all map[string][]byte) { delete(all, biggest(all)) }), image.ErrInvalid, "no blob"},
		"a name outside":    {archive(t, text("../index.json", "{}")), image.ErrInvalid, "name"},
		"an absolute name":  {archive(t, text("/index.json", "{}")), image.ErrInvalid, "name"},
		"the same twice":    {archive(t, text("index.json", "{}"), text("./index.json", "{}")), image.ErrInvalid, "two files"},
		"a symbolic link":   {archive(t, link(tar.TypeSymlink), text("oci-layout", "{}")), image.ErrUnsupported, "neither"},
		"content elsewhere": {archive(t, file{Header: tar.Header{Name: "x", Typeflag: tar.TypeCont, Size: 1}, body: "x"}), image.ErrInvalid, "no regular file"},
		"many images":       {archive(t, text("c", "{}"), text("manifest.json", "["+strings.Repeat(`{"Config":"c"},`, 1000)+`{"Config":"c"}]`)), image.ErrInvalid, "1001 images"},
		"a hard link":       {archive(t, link(tar.TypeLink), text("oci-layout", "{}")), image.ErrUnsupported, "neither"},
		"a bad name": {changed(func(all map[string][]byte) {
			all["index.json"] = bytes.ReplaceAll(all["index.json"], []byte("/app:1"), []byte("/../:1"))
		}), image.ErrInvalidReference, ""},
		"a long name": {changed(func(all map[string][]byte) {
			all["index.json"] = bytes.ReplaceAll(all["index.json"], []byte("/app:1"), bytes.Repeat([]byte("/x"), 2000))
		}), image.ErrInvalidReference, "limit"},
		"another's digest": {changed(func(all map[string][]byte) {
			all["index.json"] = bytes.ReplaceAll(all["index.json"], []byte("/app:1"), []byte("/app@"+digest.FromString("x")))
		}), image.ErrInvalid, "under this name"},
		"a reference out": {bytes.Replace(docker, []byte("config.json\",\"Layers"), []byte("/etc/hostna\",\"Layers"), 1), image.ErrInvalid, "no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			list, err := s.Import(t.Context(), bytes.NewReader(tt.data), image.ImportOptions{})
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.text) || len(list) > 0 {
				t.Errorf("imported %+v, %v, want %v and %q", list, err, tt.want, tt.text)
			}
			checkEmpty(t, s, root)
		})
	}
}

// endless is an archive that never ends.
type endless struct {
	head *bytes.Reader
	read int64
	stop func()
}

func (e *endless) Read(p []byte) (int, error) {
	if n, err := e.head.Read(p); err == nil {
		return n, nil
	}
	if e.read += int64(len(p)); e.read > 64<<20 {
		e.stop()
	}
	clear(p)
	return len(p), nil
}

// TestImportIsInterrupted ends with its caller, and refuses sizes that the disk has no
// room for before they are written.
func TestImportIsInterrupted(t *testing.T) {
	head := func(size int64) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "index.json", Size: size, Mode: 0o600, Format: tar.FormatGNU}); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := s.Import(ctx, &endless{head: bytes.NewReader(head(256 << 20)), stop: cancel}, image.ImportOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("an endless archive: %v", err)
	}
	e := &endless{head: bytes.NewReader(head(1 << 60)), stop: func() {}}
	if _, err := s.Import(t.Context(), e, image.ImportOptions{}); err == nil || !strings.Contains(err.Error(), "disk free") || e.read > 1<<20 {
		t.Errorf("an archive of an exbibyte: %v, %d bytes read", err, e.read)
	}

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(nil), image.ImportOptions{}); !errors.Is(err, image.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// TestExportRefuses exports no image that does not exist or is damaged.
func TestExportRefuses(t *testing.T) {
	r := newRegistry(t)
	r.push("app", "1", ocispec.ImageConfig{}, pack(t, text("a", "a")))
	root := t.TempDir()
	s := open(t, root)
	pull(t, s, r.Host+"/app:1")
	if err := s.Export(t.Context(), []string{"none"}, io.Discard); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("an image that does not exist: %v", err)
	}

	layer := pack(t, text("a", "a"))
	path := filepath.Join(root, "blobs", "sha256", digest.FromBytes(layer.data).Encoded())
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[10] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Export(t.Context(), []string{r.Host + "/app:1"}, io.Discard); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("a damaged image: %v", err)
	}
}
