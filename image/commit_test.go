package image_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image"
	"crisp/test/testkit"
)

// changes writes a layer of files.
func changes(t *testing.T, files ...file) func(context.Context, io.Writer) (bool, error) {
	return func(_ context.Context, to io.Writer) (bool, error) {
		_, err := to.Write(archive(t, files...))
		return len(files) > 0, err
	}
}

// commit makes an image with files on top of another one.
func commit(t *testing.T, s *image.Service, base, name string, files ...file) image.Image {
	t.Helper()
	im, err := s.Commit(t.Context(), base, image.CommitOptions{Name: name, By: "a test", Comment: "why"}, changes(t, files...))
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// TestCommit makes an image of a pulled one, of Docker's types, that lives on without it,
// here and in another store.
func TestCommit(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	below := pack(t, dir("etc"), text("etc/os", "base"), text("gone", "gone"))
	below.desc.MediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	r.push("team/app", "1", ocispec.ImageConfig{Cmd: []string{"run"}, Env: []string{"A=b"}}, below)
	root := t.TempDir()
	s := open(t, root)
	base := pull(t, s, r.Host+"/team/app:1")

	im := commit(t, s, base.ID, "state:1", dir("etc"), text("etc/os", "mine"), text(".wh.gone", ""))
	if im.RepoTags[0] != "docker.io/library/state:1" || im.Config.Config.Cmd[0] != "run" || im.Config.Config.Env[0] != "A=b" || im.Pinned {
		t.Errorf("the image is %+v", im)
	}
	if len(im.ChainIDs) != 2 || im.ChainIDs[0] != base.ChainIDs[0] {
		t.Errorf("its layers are %q, those of the base %q", im.ChainIDs, base.ChainIDs)
	}
	whole, err := s.Details(t.Context(), im.ID)
	if err != nil || len(whole.Config.History) != 2 || whole.Config.History[1].CreatedBy != "a test" || whole.Config.History[1].Comment != "why" || whole.Config.Created == nil {
		t.Errorf("its configuration is %+v, %v", whole.Config, err)
	}

	second := commit(t, s, im.ID, "state:2", text("more", "more"))
	if err := s.Remove(t.Context(), base.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, root)
	data := exported(t, s, "state:2")
	to, list := imported(t, data, image.ImportOptions{})
	if len(list) != 1 || list[0].ID != second.ID {
		t.Errorf("imported %+v, want %s", list, second.ID)
	}
	for _, s := range []*image.Service{s, to} {
		if done, err := s.Check(t.Context(), false, func(d image.Damage) { t.Errorf("damage: %+v", d) }); err != nil || done.Layers != 3 {
			t.Errorf("checked %+v, %v", done, err)
		}
		if err := s.Prepare("c", second.ID, nil, nil); err != nil {
			t.Fatal(err)
		}
		m := mount(t, s, "c", nil)
		if a, b := read(t, m, "etc/os"), read(t, m, "more"); a != "mine" || b != "more" {
			t.Errorf("the files are %q and %q", a, b)
		}
		if _, err := os.Stat(path(m, "gone")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the deleted file: %v", err)
		}
	}
	acceptable(t, data, "docker.io/library/state:2")
}

// acceptable checks what other tools think of an archive.
func acceptable(t *testing.T, data []byte, tag string) {
	t.Helper()
	named, err := name.NewTag(tag)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "image.tar")
	err = os.WriteFile(file, data, 0o600)
	for name, content := range files(t, data) {
		at := filepath.Join(dir, "oci", name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(at), 0o700), os.WriteFile(at, content, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}

	saved, err := tarball.ImageFromPath(file, &named) // as docker load
	if err == nil {
		err = validate.Image(saved)
	}
	if err != nil {
		t.Errorf("as of docker save: %v", err)
	}
	index, err := layout.ImageIndexFromPath(filepath.Join(dir, "oci")) // as skopeo and ctr
	if err == nil {
		err = validate.Index(index)
	}
	if err != nil {
		t.Fatalf("as an OCI layout: %v", err)
	}
	all, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	im, err := index.Image(all.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := im.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if string(l.MediaType) != ocispec.MediaTypeImageLayerGzip {
			t.Errorf("a layer has type %q", l.MediaType)
		}
	}
}

// TestCommitWithoutChanges has the same layers.
func TestCommitWithoutChanges(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("app", "1", ocispec.ImageConfig{}, pack(t, text("a", "a")))
	r.push("empty", "1", ocispec.ImageConfig{})
	s := open(t, t.TempDir())

	for _, repo := range []string{"app", "empty"} {
		base := pull(t, s, r.Host+"/"+repo+":1")
		im := commit(t, s, base.ID, repo+":2")
		if im.ID == base.ID || !slices.Equal(im.ChainIDs, base.ChainIDs) {
			t.Errorf("%+v of %+v", im, base)
		}
		if whole, err := s.Details(t.Context(), im.ID); err != nil || !whole.Config.History[len(whole.Config.History)-1].EmptyLayer {
			t.Errorf("its history is %+v, %v", whole.Config.History, err)
		}
		acceptable(t, exported(t, s, repo+":2"), "docker.io/library/"+repo+":2")
	}
	if im := commit(t, s, r.Host+"/empty:1", "first", text("a", "a")); len(im.ChainIDs) != 1 {
		t.Errorf("the first layer: %+v", im)
	}
}

// TestCommitMovesName gives a name to another image, and pins it.
func TestCommitMovesName(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("app", "1", ocispec.ImageConfig{}, pack(t, text("a", "a")))
	s := open(t, t.TempDir())
	base := pull(t, s, r.Host+"/app:1")
	first := commit(t, s, base.ID, r.Host+"/app:1", text("b", "b"))
	if im, err := s.Get(base.ID); err != nil || len(im.RepoTags) != 0 {
		t.Errorf("the base is %+v, %v", im, err)
	}
	second, err := s.Commit(t.Context(), first.ID, image.CommitOptions{Name: r.Host + "/app:1", Pin: true}, changes(t, text("c", "c")))
	if err != nil || !second.Pinned {
		t.Errorf("committed %+v, %v", second, err)
	}
	if im, err := s.Get(r.Host + "/app:1"); err != nil || im.ID != second.ID {
		t.Errorf("the name is that of %+v, %v", im, err)
	}
}

// TestCommitRefused has what makes no image, and leaves nothing.
func TestCommitRefused(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("app", "1", ocispec.ImageConfig{}, pack(t, text("a", "a")))
	root := t.TempDir()
	s := open(t, root)
	base := pull(t, s, r.Host+"/app:1")
	most := pack(t, text("a", "a"))
	many := make([]packed, 500)
	for i := range many {
		many[i] = most
	}
	r.push("many", "1", ocispec.ImageConfig{}, many...)
	full := pull(t, s, r.Host+"/many:1")
	before := exported(t, s, base.ID, full.ID)

	broken := errors.New("broken")
	good := changes(t, text("b", "b"))
	cancelled, cancel := context.WithCancel(t.Context())
	for name, c := range map[string]struct {
		ctx     context.Context // of one call
		id, to  string
		comment string
		changes func(context.Context, io.Writer) (bool, error)
		want    error
	}{
		"name":     {t.Context(), base.ID, "Not A Name", "", good, image.ErrInvalidReference},
		"digest":   {t.Context(), base.ID, "app@" + base.ID, "", good, image.ErrInvalidReference},
		"comment":  {t.Context(), base.ID, "app", strings.Repeat("x", 5000), good, image.ErrUnsupported},
		"no image": {t.Context(), digest.FromString("none").String(), "app", "", good, image.ErrNotFound},
		"layers":   {t.Context(), full.ID, "app", "", good, image.ErrUnsupported},
		"reading": {t.Context(), base.ID, "app", "", func(_ context.Context, to io.Writer) (bool, error) {
			_, err := to.Write(make([]byte, 1<<20))
			return true, errors.Join(err, broken)
		}, broken},
		"no archive": {t.Context(), base.ID, "app", "", func(_ context.Context, to io.Writer) (bool, error) {
			_, err := io.WriteString(to, strings.Repeat("junk", 1000))
			return true, err
		}, image.ErrInvalid},
		"leaves the layer": {t.Context(), base.ID, "app", "", changes(t, text("../b", "b")), image.ErrInvalid},
		"late": {cancelled, base.ID, "app", "", func(ctx context.Context, to io.Writer) (bool, error) {
			cancel()
			return good(ctx, to)
		}, context.Canceled},
	} {
		if im, err := s.Commit(c.ctx, c.id, image.CommitOptions{Name: c.to, Comment: c.comment}, c.changes); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, error %v, want %v", name, im, err, c.want)
		}
	}

	if list := s.List(); len(list) != 2 {
		t.Errorf("there are %+v", list)
	}
	if !bytes.Equal(before, exported(t, s, base.ID, full.ID)) {
		t.Error("the images have changed")
	}
	waitFor(t, "what is left of them to be removed", func() bool {
		left, err := os.ReadDir(filepath.Join(root, "tmp"))
		return err == nil && len(left) == 0
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), base.ID, image.CommitOptions{Name: "app"}, good); !errors.Is(err, image.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// TestCommitKeepsItsBase removes the image, and the container with it, while its changes
// are being read.
func TestCommitKeepsItsBase(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("app", "1", ocispec.ImageConfig{}, pack(t, text("a", "a")), pack(t, text("b", "b")))
	s := open(t, t.TempDir())
	base := pull(t, s, r.Host+"/app:1")
	im, err := s.Commit(t.Context(), base.ID, image.CommitOptions{Name: "mine"}, func(ctx context.Context, to io.Writer) (bool, error) {
		if err := s.Remove(ctx, base.ID); err != nil {
			return false, err
		}
		return changes(t, text("c", "c"))(ctx, to)
	})
	if err != nil {
		t.Fatal(err)
	}

	if done, err := s.Check(t.Context(), false, func(d image.Damage) { t.Errorf("damage: %+v", d) }); err != nil || done.Layers != 3 {
		t.Errorf("checked %+v, %v", done, err)
	}
	if list := s.List(); len(list) != 1 || list[0].ID != im.ID {
		t.Errorf("there are %+v", list)
	}
	if err := s.Remove(t.Context(), "mine"); err != nil {
		t.Fatal(err)
	}
	if u, err := s.FsInfo(); err != nil || u.UsedBytes > 64<<10 {
		t.Errorf("%+v are still used, %v", u, err)
	}
}

// TestCommitErrorAtEveryPoint makes each step fail. The base stays as it is, and the next
// commit succeeds.
func TestCommitErrorAtEveryPoint(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("app", "1", ocispec.ImageConfig{}, pack(t, text("a", "a")))
	ordered := errors.New("ordered failure")
	for nth, failed := 0, true; failed; nth++ {
		var fail func(string) error
		s := open(t, t.TempDir(), func(o *image.Options) {
			image.SetFailpoint(o, func(effect string) error {
				if fail == nil {
					return nil
				}
				return fail(effect)
			})
		})

		base := pull(t, s, r.Host+"/app:1")
		left, point := nth, ""
		fail = func(effect string) error {
			if left--; left == -1 {
				point = effect
				return ordered
			}
			return nil
		}

		_, err := s.Commit(t.Context(), base.ID, image.CommitOptions{Name: "mine"}, changes(t, text("b", "b")))
		fail = nil
		if failed = point != ""; failed != errors.Is(err, ordered) || nth < 10 && !failed {
			t.Fatalf("point %d, %q: error %v", nth, point, err)
		}
		if _, err := s.Get("mine"); failed && point != "after record image" && err == nil {
			t.Errorf("%s: there is an image", point)
		}
		if again := commit(t, s, base.ID, "mine", text("b", "b")); len(again.ChainIDs) != 2 {
			t.Errorf("%s: then it is %+v", point, again)
		}
		if _, err := s.Check(t.Context(), false, func(d image.Damage) { t.Errorf("%s: damage: %+v", point, d) }); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
