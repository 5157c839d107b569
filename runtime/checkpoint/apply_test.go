package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// overlay mounts a root file system of an image's files and a writable layer.
func overlay(t *testing.T, lower string) (root string, dir *os.File) {
	t.Helper()
	root, upper, work := t.TempDir(), t.TempDir(), t.TempDir()
	// The directories of tests may be on an overlay themselves.
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
	if err := unix.Mount("none", root, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})

	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir = os.NewFile(uintptr(fd), root)
	t.Cleanup(func() { dir.Close() })
	return root, dir
}

// changed is an unpacked checkpoint of changes alone.
func changed(t testing.TB, diff []byte, deleted any) *Unpacked {
	t.Helper()
	u := &Unpacked{stage: Stage{t.TempDir(), "a"}}
	err := errors.Join(os.Mkdir(u.stage.dir(), 0o700), os.WriteFile(filepath.Join(u.stage.dir(), diffFile), diff, 0o600))
	switch list := deleted.(type) {
	case string:
		err = errors.Join(err, os.WriteFile(filepath.Join(u.stage.dir(), deletedFile), []byte(list), 0o600))
	case []string:
		err = errors.Join(err, u.stage.add(lists(list)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// unmoved are owners that are the same on the disk.
func unmoved(uid, gid int) (uint32, uint32, error) { return uint32(uid), uint32(gid), nil }

// imageFiles are those of an image.
func imageFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "etc", "old"), 0o755), os.WriteFile(filepath.Join(dir, "etc", "kept"), []byte("image"), 0o644),
		os.WriteFile(filepath.Join(dir, "etc", "gone"), nil, 0o644), os.WriteFile(filepath.Join(dir, "file"), nil, 0o644),
		os.MkdirAll(filepath.Join(dir, "dir", "with", "more"), 0o755), os.Symlink("/tmp", filepath.Join(dir, "link")),
		os.WriteFile(filepath.Join(dir, "hard"), []byte("hard"), 0o644), os.WriteFile(filepath.Join(dir, "no UTF-8 \xff"), nil, 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestApply makes changes, saves them, and makes them again in another root from that.
func TestApply(t *testing.T) {
	testkit.Root(t)
	lower := imageFiles(t)
	first, _ := overlay(t, lower)
	in := func(path string) string { return filepath.Join(first, path) }
	const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	when := time.Unix(1_000_000_000, 0)
	err := errors.Join(
		os.RemoveAll(in("etc")), os.Mkdir(in("etc"), 0o751), os.WriteFile(in("etc/kept"), []byte("new"), 0o600), os.Chown(in("etc/kept"), 7, 8),
		os.Remove(in("no UTF-8 \xff")), os.Remove(in("file")), os.Mkdir(in("file"), 0o755), os.WriteFile(in("file/inside"), []byte("x"), 0o644),
		os.RemoveAll(in("dir")), os.WriteFile(in("dir"), []byte("now a file"), 0o755), os.Chmod(in("dir"), 0o755|os.ModeSetuid),
		os.Remove(in("link")), os.Mkdir(in("link"), 0o700), os.Symlink("/etc/shadow", in("link/deeper")), os.Link(in("etc/kept"), in("second")),
		unix.Mkfifo(in("pipe"), 0o622), unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), os.Remove(in("hard")),
		os.WriteFile(in("program"), []byte("x"), 0o755), unix.Setxattr(in("program"), "security.capability", []byte(capability), 0),
		os.Chtimes(in("file/inside"), when, when), os.Chtimes(in("file"), when, when),
	)
	if err != nil {
		t.Fatal(err)
	}

	var upper string
	if text, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, " "+first+" ") {
				_, rest, _ := strings.Cut(line, "upperdir=")
				upper, _, _ = strings.Cut(rest, ",")
			}
		}
	}
	up, uerr := os.Open(upper)
	low, lerr := os.Open(lower)
	if err := errors.Join(uerr, lerr); err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	defer low.Close()
	var diff bytes.Buffer
	deleted, err := Diff{Upper: up, Lower: low, IDs: same}.Write(t.Context(), &diff)
	if err != nil {
		t.Fatal(err)
	}

	second, root := overlay(t, lower)
	if err := changed(t, diff.Bytes(), deleted).Apply(t.Context(), root, unmoved); err != nil {
		t.Fatal(err)
	}
	if want, got := tree(t, first), tree(t, second); want != got {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// tree describes all files of a directory.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}

		text := ""
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = string(data)
		} else if info.Mode()&os.ModeSymlink != 0 {
			if text, err = os.Readlink(path); err != nil {
				return err
			}
		}
		var value [100]byte
		n, _ := unix.Lgetxattr(path, "security.capability", value[:])
		mtime := ""
		if path != dir { // nobody has listed the root
			mtime = fmt.Sprint(info.ModTime().Unix())
		}
		fmt.Fprintf(&b, "%s %v %d:%d %x %q %x %s\n", strings.TrimPrefix(path, dir), info.Mode(), st.Uid, st.Gid, st.Rdev, text, value[:max(n, 0)], mtime)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestApplyTranslates has owners that are others on the disk.
func TestApplyTranslates(t *testing.T) {
	testkit.Root(t)
	second, root := overlay(t, t.TempDir())
	const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	diff := entries{{Typeflag: tar.TypeReg, Name: "file", Uid: 7, Gid: 8, PAXRecords: map[string]string{xattrPrefix + "security.capability": capability, xattrPrefix + "security.selinux": "x"}}}.packed(t)
	few := func(uid, gid int) (uint32, uint32, error) {
		if uid > 100 || gid > 100 {
			return 0, 0, errors.New("there is no such user")
		}
		return 100000 + uint32(uid), 200000 + uint32(gid), nil
	}

	if err := changed(t, diff, nil).Apply(t.Context(), root, few); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	var value [100]byte
	err := unix.Lstat(filepath.Join(second, "file"), &st)
	n, xerr := unix.Lgetxattr(filepath.Join(second, "file"), "security.capability", value[:])
	if err := errors.Join(err, xerr); err != nil || st.Uid != 100007 || st.Gid != 200008 || st.Mode&0o7777 != 0o4777 {
		t.Errorf("owner %d:%d, mode %o, %v", st.Uid, st.Gid, st.Mode, err)
	}
	if want := "\x01\x00\x00\x03" + capability[4:] + "\xa0\x86\x01\x00"; string(value[:max(n, 0)]) != want {
		t.Errorf("capabilities %x, want %x", value[:max(n, 0)], want)
	}
	for name, e := range map[string]entries{
		"user": {{Typeflag: tar.TypeReg, Name: "a", Uid: 101}}, "group": {{Typeflag: tar.TypeDir, Name: "a/", Gid: 101}}, "negative": {{Typeflag: tar.TypeReg, Name: "a", Uid: -1}},
	} {
		if err := changed(t, e.packed(t), nil).Apply(t.Context(), root, few); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestApplyRefuses has changes that lead out of the root, or are no changes of a container.
func TestApplyRefuses(t *testing.T) {
	testkit.Root(t)
	outside := t.TempDir()
	canary := filepath.Join(outside, "canary")
	if err := os.WriteFile(canary, []byte("whole"), 0o644); err != nil {
		t.Fatal(err)
	}
	lower := t.TempDir()
	if err := errors.Join(os.Symlink(outside, filepath.Join(lower, "out")), os.Symlink(canary, filepath.Join(lower, "canary"))); err != nil {
		t.Fatal(err)
	}

	link := tar.Header{Typeflag: tar.TypeSymlink, Name: "made", Linkname: outside}
	attribute := func(name string) entries {
		return entries{{Typeflag: tar.TypeReg, Name: "a", PAXRecords: map[string]string{xattrPrefix + name: "y"}}}
	}
	for name, c := range map[string]struct {
		diff    entries
		deleted any
		refused bool
	}{
		"parent":                      {entries{regular("../canary", "x")}, nil, true},
		"parent inside":               {entries{regular("a/../../canary", "x")}, nil, true},
		"absolute":                    {entries{regular(canary, "x")}, nil, true},
		"through a link of the image": {entries{regular("out/canary", "x")}, nil, true},
		"through a link of its own":   {entries{link, regular("made/canary", "x")}, nil, true},
		"directory through a link":    {entries{link, {Typeflag: tar.TypeDir, Name: "made/new/"}}, nil, true},
		"onto a link":                 {entries{regular("canary", "x")}, nil, false},
		"directory onto a link":       {entries{{Typeflag: tar.TypeDir, Name: "out/"}, regular("out/canary", "x")}, nil, false},
		"link to what is outside":     {entries{{Typeflag: tar.TypeLink, Name: "a", Linkname: "out/canary"}}, nil, true},
		"link to a link":              {entries{{Typeflag: tar.TypeLink, Name: "a", Linkname: "canary"}}, nil, false},
		"link to parent":              {entries{{Typeflag: tar.TypeLink, Name: "a", Linkname: "../canary"}}, nil, true},
		"link to a directory":         {entries{{Typeflag: tar.TypeDir, Name: "d/"}, {Typeflag: tar.TypeLink, Name: "a", Linkname: "d"}}, nil, true},
		"link to nothing":             {entries{{Typeflag: tar.TypeLink, Name: "a", Linkname: "b"}}, nil, true},
		"link to itself":              {entries{regular("a", ""), {Typeflag: tar.TypeLink, Name: "a", Linkname: "a"}}, nil, true},
		"file as root":                {entries{regular(".", "x")}, nil, true},
		"no directory":                {entries{regular("a/b", "x")}, nil, true},
		"below a file":                {entries{regular("a", "x"), regular("a/b", "x")}, nil, true},
		"whiteout":                    {entries{{Typeflag: tar.TypeChar, Name: "a"}}, nil, true},
		"odd device":                  {entries{{Typeflag: tar.TypeChar, Name: "a", Devmajor: 1 << 20}}, nil, true},
		"attribute of overlayfs":      {attribute("trusted.overlay.opaque"), nil, true},
		"another of overlayfs":        {attribute("user.overlay.opaque"), nil, true},
		"odd capabilities":            {attribute("security.capability"), nil, true},
		"odd access list":             {attribute("system.posix_acl_access"), nil, true},
		"deep":                        {entries{{Typeflag: tar.TypeDir, Name: strings.Repeat("d/", maxDepth+2)}}, nil, true},
		"deleted outside":             {nil, []string{"/../canary"}, true},
		"deleted through a link":      {nil, []string{"/out/canary"}, false},
		"deleted root":                {nil, []string{"/"}, true},
		"deleted, relative":           {nil, []string{"nothing"}, false},
		"deleted, long":               {nil, []string{"/" + strings.Repeat("x", 300)}, true},
		"no list":                     {nil, "{}", true},
		"numbers":                     {nil, "[1]", true},
		"lists":                       {nil, `[["/a"]]`, true},
		"list without end":            {nil, `["/a"`, true},
		"a long string":               {nil, `["` + strings.Repeat("x", 2*maxDeletedText) + `"]`, true},
	} {
		_, root := overlay(t, lower)
		err := changed(t, c.diff.packed(t), c.deleted).Apply(t.Context(), root, unmoved)
		if c.refused != (err != nil) || err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLarge) || len(fmt.Sprint(err)) > 1000 {
			t.Errorf("%s: error %.1000v", name, err)
		}
		if text, err := os.ReadFile(canary); err != nil || string(text) != "whole" {
			t.Fatalf("%s: outside there is %q, %v", name, text, err)
		}
		if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
			t.Fatalf("%s: outside there are %v, %v", name, names, err)
		}
	}

	_, root := overlay(t, lower)
	late := errors.New("too late")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(late)
	if err := changed(t, entries{regular("a", "x")}.packed(t), nil).Apply(ctx, root, unmoved); !errors.Is(err, late) {
		t.Errorf("after its end: %v", err)
	}
}

// FuzzApply applies changes of any bytes.
func FuzzApply(f *testing.F) {
	testkit.Root(f)
	f.Add(entries{{Typeflag: tar.TypeDir, Name: "d/"}, regular("d/file", "text"), {Typeflag: tar.TypeLink, Name: "hard", Linkname: "d/file"}}.packed(f), `["/gone"]`)
	f.Fuzz(func(t *testing.T, diff []byte, deleted string) {
		parent := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(parent, "root"), 0o755), os.WriteFile(filepath.Join(parent, "canary"), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		root, err := os.Open(filepath.Join(parent, "root"))
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()

		err = changed(t, diff, deleted).Apply(t.Context(), root, unmoved)
		if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("error %v", err)
		}
		if names, err := os.ReadDir(parent); err != nil || len(names) != 2 {
			t.Errorf("there are %v, %v", names, err)
		}
	})
}
