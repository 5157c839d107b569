package selinux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// labelOf is a file's own label, "" without one. A kernel without SELinux
// stores labels like any attribute.
func labelOf(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, maxLabel)
	n, err := unix.Lgetxattr(path, labelAttr, buf)
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	if err != nil {
		t.Fatalf("label of %s: %v", path, err)
	}
	return trimNUL(buf[:n])
}

func TestRelabel(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	volume, outside := filepath.Join(dir, "volume"), filepath.Join(dir, "outside")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(volume, "a/b"), 0o755), os.WriteFile(filepath.Join(volume, "a/b/file"), nil, 0o400),
		os.WriteFile(outside, nil, 0o644), os.Symlink(outside, filepath.Join(volume, "link")), os.Symlink("..", filepath.Join(volume, "a/up")),
		unix.Mkfifo(filepath.Join(volume, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}

	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	before := labelOf(t, outside)
	for range 2 {
		if err := LabelTree(t.Context(), volume, label); err != nil {
			t.Fatal(err)
		}
	}

	for _, name := range []string{"", "a", "a/b", "a/b/file", "a/up", "link", "fifo"} {
		if got := labelOf(t, filepath.Join(volume, name)); got != label {
			t.Errorf("%q has label %q", name, got)
		}
	}

	if got := labelOf(t, outside); got != before {
		t.Errorf("a file to which a link leads got label %q", got)
	}
	if got := labelOf(t, dir); got == label {
		t.Error("the directory above was labelled")
	}

	// A path that leads elsewhere by now.
	if err := os.Rename(volume, volume+".old"); err != nil {
		t.Fatal(err)
	}

	if err := os.Symlink(outside, volume); err != nil {
		t.Fatal(err)
	}
	if err := LabelTree(t.Context(), volume, label); !errors.Is(err, unix.ELOOP) {
		t.Errorf("relabel a link: %v, want %v", err, unix.ELOOP)
	}

	if err := LabelTree(t.Context(), volume+"/", label); err == nil || labelOf(t, outside) != before {
		t.Errorf("relabel a link with a slash: %v", err)
	}
}

func TestRelabelEndsWithItsCaller(t *testing.T) {
	testkit.Root(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	dir := t.TempDir()
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}

	if err := LabelTree(ctx, dir, label); !errors.Is(err, context.Canceled) || labelOf(t, below) == label {
		t.Errorf("got %v and label %q, want %v and nothing below labelled", err, labelOf(t, below), context.Canceled)
	}

	// procfs has no labels: that is seen before its directories are read.
	bare := fmt.Sprintf("/proc/%d/task", os.Getpid())
	if err := writeLabel(bare, label); !errors.Is(err, unix.ENOTSUP) {
		t.Fatalf("label a file of procfs: %v, want %v", err, unix.ENOTSUP)
	}

	if err := LabelTree(ctx, bare, label); err != nil {
		t.Errorf("relabel a file system without labels: %v", err)
	}
	if err := LabelFile(bare, label); err != nil {
		t.Errorf("label a file of a file system without labels: %v", err)
	}
}

func TestNeverRelabelled(t *testing.T) {
	for _, name := range neverRelabelled {
		real, err := filepath.EvalSymlinks(name)
		if !ofNode(name) || err == nil && !ofNode(real) {
			t.Errorf("%s, which is %q, may be relabelled", name, real)
		}
	}

	// Where /sbin and /lib64 lead on most systems.
	for _, path := range []string{"/usr/sbin", "/usr/lib64/", "/usr/libexec", "/usr/local", "/etc/shadow", "/etc/pki"} {
		if !ofNode(path) {
			t.Errorf("%s may be relabelled", path)
		}
	}

	for _, path := range []string{"/var/lib/data", "/etc/ssl/x", "/sbin2"} {
		if ofNode(path) {
			t.Errorf("%s may not be relabelled", path)
		}
	}

	before := map[string]string{}
	for _, path := range []string{"/", "/etc", "/etc/", "/var/../usr", "//etc"} {
		before[path] = labelOf(t, path)
		if err := LabelTree(t.Context(), path, "system_u:object_r:container_file_t:s0"); !errors.Is(err, ErrNotRelabelled) {
			t.Errorf("relabel %s: %v, want %v", path, err, ErrNotRelabelled)
		}
		if got := labelOf(t, path); got != before[path] {
			t.Errorf("%s has label %q", path, got)
		}
	}

	if err := LabelTree(t.Context(), "/etc", ""); err != nil {
		t.Errorf("without SELinux: %v", err)
	}
}
