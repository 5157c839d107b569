package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	smallSpec   = `{"ociVersion":"1.2.0","process":{"user":{"uid":7},"cwd":"/"},"linux":{}}`
	smallConfig = `{"id":"0123","name":"app","runtime":"crisp"}`
)

// newKey makes a node's key.
func newKey(t testing.TB) *Key {
	t.Helper()
	k, err := OpenKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// written is an archive of a small checkpoint that a node has signed, with its digest.
func written(t testing.TB, key *Key) (archive []byte, digest string) {
	t.Helper()
	s, err := NewStage(t.TempDir(), "stage")
	for name, text := range map[string]string{
		"config.dump": smallConfig, "spec.dump": smallSpec, "status": `{"StartedAt":17}`, "deleted.files": `["/etc/group"]`,
		"container.log": "output\n", "checkpoint/inventory.img": "not looked at", "checkpoint/pages-1.img": strings.Repeat("memory", 1000),
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(s.dir(), name), []byte(text), 0o600))
	}

	file := filepath.Join(t.TempDir(), "a.tar")
	if err == nil {
		digest, err = write(t.Context(), s, file, key)
	}
	if err == nil {
		archive, err = os.ReadFile(file)
	}
	if err != nil {
		t.Fatal(err)
	}
	return archive, digest
}

// write writes the archive of a stage.
func write(ctx context.Context, s Stage, file string, key *Key) (string, error) {
	a, err := NewArchive(file)
	if err != nil {
		return "", err
	}
	digest, err := s.Write(ctx, a, key)
	return digest, errors.Join(err, a.Close())
}

// anyone are terms that every small archive complies with.
func anyone() Terms { return Terms{Bytes: 1 << 20, From: Policy{anybody: true}} }

// unpack unpacks an archive, and checks that nothing is left if that fails.
func unpack(t *testing.T, archive []byte, terms Terms) (*Unpacked, error) {
	t.Helper()
	parent := t.TempDir()
	u, err := Unpack(t.Context(), bytes.NewReader(archive), parent, "a", terms)
	if left, lerr := os.ReadDir(parent); lerr != nil || err != nil && len(left) > 0 {
		t.Errorf("left: %v, %v", left, lerr)
	}
	return u, err
}

func TestUnpack(t *testing.T) {
	key := newKey(t)
	archive, digest := written(t, key)
	u, err := unpack(t, archive, Terms{Bytes: 1 << 20, From: Policy{keys: []PublicKey{key.Public()}}, Digest: digest})
	if err != nil {
		t.Fatal(err)
	}
	if u.Config.Name != "app" || u.Spec.Process.User.UID != 7 || u.Status.StartedAt != 17 || u.Signer != key.Public() {
		t.Errorf("unpacked %+v", u)
	}

	var names []string
	err = filepath.WalkDir(u.stage.dir(), func(path string, d fs.DirEntry, err error) error {
		info, ierr := d.Info()
		if want := map[bool]fs.FileMode{true: fs.ModeDir | 0o700, false: 0o600}[d.IsDir()]; ierr == nil && info.Mode() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		names = append(names, strings.TrimPrefix(path, u.stage.dir()))
		return errors.Join(err, ierr)
	})
	// What nobody needs is not written.
	if want := []string{"", "/checkpoint", "/checkpoint/inventory.img", "/checkpoint/pages-1.img", "/config.dump", "/crisp.manifest", "/deleted.files", "/spec.dump", "/status"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("there are %q, %v", names, err)
	}

	var deleted []string
	if err := u.EachDeleted(t.Context(), func(path string) error { deleted = append(deleted, path); return nil }); err != nil || !slices.Equal(deleted, []string{"/etc/group"}) {
		t.Errorf("deleted %q, %v", deleted, err)
	}
	if _, err := u.OpenDiff(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an archive without changed files: %v", err)
	}
	if err := u.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(u.stage.dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after its removal: %v", err)
	}
}

// entries are those of an archive that others have made.
type entries []tar.Header

// packed packs entries whose content is in their field Uname.
func (e entries) packed(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range e {
		text := h.Uname
		h.Uname, h.Mode = "", 0o4777
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(text))
		} else {
			text = ""
		}

		err := w.WriteHeader(&h)
		if err == nil {
			_, err = io.WriteString(w, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func regular(name, text string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Uname: text}
}

// complete are the entries that every archive must have.
func complete() entries {
	return entries{regular("config.dump", smallConfig), regular("spec.dump", smallSpec), regular("checkpoint/inventory.img", "")}
}

// TestForeignArchives has what other engines put into theirs.
func TestForeignArchives(t *testing.T) {
	e := entries{
		{Typeflag: tar.TypeDir, Name: "./"}, {Typeflag: tar.TypeDir, Name: "./checkpoint/"}, regular("./checkpoint/core-1.img", "x"),
		regular("checkpoint/descriptors.json", "[]"), regular("dump.log", "x"), regular("stats-dump", "x"), regular("bind.mounts", "[]"),
		regular("network.status", "null"), regular("io.kubernetes.cri-o.LogPath", "x"), regular("rootfs-diff.tar", ""), regular("new in the future", "x"),
	}
	u, err := unpack(t, append(e, complete()...).packed(t), anyone())
	if err != nil {
		t.Fatal(err)
	}
	if u.Signer != (PublicKey{}) {
		t.Errorf("signed by %s", u.Signer)
	}
	if _, err := unpack(t, complete().packed(t), Terms{Bytes: 1 << 20, From: Policy{keys: []PublicKey{newKey(t).Public()}}}); !errors.Is(err, ErrUntrusted) {
		t.Errorf("without a signature: %v", err)
	}
}

// TestHostileArchives has archives that want more than to be read.
func TestHostileArchives(t *testing.T) {
	first := func(e ...tar.Header) []byte { return append(entries(e), complete()...).packed(t) }
	sparse := tar.Header{Typeflag: tar.TypeReg, Name: "checkpoint/pages-1.img", PAXRecords: map[string]string{"VENDOR.big": strings.Repeat("x", maxHeaders)}}
	values := `{"a":[` + strings.Repeat("{},", maxValues) + `{}]}`
	tests := map[string]struct {
		archive []byte
		want    error
	}{
		"absolute":                   {first(regular("/config.dump", "x")), ErrInvalid},
		"parent":                     {first(regular("../config.dump", "x")), ErrInvalid},
		"parent inside":              {first(regular("checkpoint/../../x.img", "x")), ErrInvalid},
		"harmless parent":            {first(regular("checkpoint/../x", "x")), ErrInvalid},
		"twice":                      {first(regular("config.dump", smallConfig)), ErrInvalid},
		"twice, spelled differently": {first(regular("./checkpoint//inventory.img", "")), ErrInvalid},
		"unknown, twice":             {first(regular("x", ""), regular("x", "")), ErrInvalid},
		"directory for a file":       {first(tar.Header{Typeflag: tar.TypeDir, Name: "config.dump"}), ErrInvalid},
		"directory of images":        {first(tar.Header{Typeflag: tar.TypeDir, Name: "checkpoint/inventory.img"}), ErrInvalid},
		"deeper image":               {first(regular("checkpoint/a/b.img", "x")), ErrInvalid},
		"odd image":                  {first(regular("checkpoint/a\nb.img", "x")), ErrInvalid},
		"hidden image":               {first(regular("checkpoint/.img", "x")), ErrInvalid},
		"many headers":               {first(sparse), ErrTooLarge},
		"large config":               {entries{regular("config.dump", strings.Repeat(" ", 1<<20)+"{}")}.packed(t), ErrTooLarge},
		"too large in all":           {first(regular("checkpoint/pages-1.img", strings.Repeat("x", 1<<20))), ErrTooLarge},
		"too large, not unpacked":    {first(regular("x", strings.Repeat("x", 1<<20))), ErrTooLarge},
		"too large after its end":    {append(complete().packed(t), make([]byte, 1<<20)...), ErrTooLarge},
		"no config":                  {complete()[1:].packed(t), ErrInvalid},
		"no spec":                    {entries{complete()[0], complete()[2]}.packed(t), ErrInvalid},
		"no inventory":               {complete()[:2].packed(t), ErrInvalid},
		"malformed config":           {entries{regular("config.dump", "["), complete()[1], complete()[2]}.packed(t), ErrInvalid},
		"null as spec":               {entries{complete()[0], regular("spec.dump", "null"), complete()[2]}.packed(t), ErrInvalid},
		"many values":                {entries{complete()[0], regular("spec.dump", values), complete()[2]}.packed(t), ErrInvalid},
		"malformed status":           {first(regular("status", "{")), ErrInvalid},
		"malformed manifest":         {first(regular("crisp.manifest", "{}")), ErrInvalid},
		"empty":                      {nil, ErrInvalid},
		"no archive":                 {bytes.Repeat([]byte("x"), 4096), ErrInvalid},
		"torn":                       {complete().packed(t)[:1100], ErrInvalid},
	}
	for name, kind := range map[string]byte{"symlink": tar.TypeSymlink, "hard link": tar.TypeLink, "device": tar.TypeChar, "disk": tar.TypeBlock, "FIFO": tar.TypeFifo} {
		for _, at := range []string{"container.log", "config.dump", "checkpoint/pages-1.img", "checkpoint/parent", "checkpoint", "volumes/x"} {
			tests[name+" at "+at] = struct {
				archive []byte
				want    error
			}{first(tar.Header{Typeflag: kind, Name: at, Linkname: "/etc/passwd"}), ErrInvalid}
		}
	}

	for name, c := range tests {
		terms := anyone()
		if strings.Contains(name, "values") {
			terms.Bytes *= 10
		}
		if _, err := unpack(t, c.archive, terms); !errors.Is(err, c.want) || len(err.Error()) > 1000 {
			t.Errorf("%s: error %.1000v, want %v", name, err, c.want)
		}
	}
}

// TestManyFiles has more files than an archive may have.
func TestManyFiles(t *testing.T) {
	var e entries
	for i := range maxFiles + 1 {
		e = append(e, regular("x/"+strings.Repeat("y", i%200)+time.Duration(i).String(), ""))
	}
	terms := anyone()
	terms.Bytes = 1 << 30
	if _, err := unpack(t, e.packed(t), terms); !errors.Is(err, ErrTooLarge) {
		t.Errorf("error %v", err)
	}
}

// TestUnpackEnds has an archive that never does.
func TestUnpackEnds(t *testing.T) {
	late := errors.New("too late")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, late)
	defer cancel()
	parent := t.TempDir()
	endless := io.MultiReader(bytes.NewReader(complete().packed(t)), nothing{})
	if _, err := Unpack(ctx, endless, parent, "a", Terms{Bytes: 1 << 60, From: Policy{anybody: true}}); !errors.Is(err, late) {
		t.Errorf("error %v", err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}

	if err := os.Mkdir(filepath.Join(parent, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(t.Context(), bytes.NewReader(complete().packed(t)), parent, "a", anyone()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("into a directory that is there: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(parent, "a")); err != nil {
		t.Errorf("the directory that was there: %v", err)
	}
}

type nothing struct{}

func (nothing) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// FuzzUnpack unpacks archives of any bytes.
func FuzzUnpack(f *testing.F) {
	archive, _ := written(f, newKey(f))
	f.Add(archive)
	f.Add(complete().packed(f))
	f.Fuzz(func(t *testing.T, archive []byte) {
		parent := t.TempDir()
		u, err := Unpack(t.Context(), bytes.NewReader(archive), parent, "a", Terms{Bytes: 1 << 16, From: Policy{anybody: true}})
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("error %v", err)
			}
			if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			return
		}

		err = filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.Type().IsRegular() && !d.IsDir() {
				t.Errorf("%s is %v", path, d.Type())
			}
			return err
		})
		if err = errors.Join(err, u.Remove(t.Context())); err != nil {
			t.Error(err)
		}
	})
}
