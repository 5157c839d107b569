package packages

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// systemctl stands in for systemd's, and records its arguments. The keeper is
// active if a marker file exists.
const systemctl = `#!/bin/sh
echo "$*" >>/systemctl.log
case "$*" in *is-active*) test -e /keeper-is-active ;; esac
`

// root is a copy of this machine's file system that can be changed freely.
type root struct {
	t   *testing.T
	dir string
}

// newRoot mounts an overlay with an empty upper directory over the machine's
// root.
func newRoot(t *testing.T) *root {
	t.Helper()
	testkit.Root(t)
	top := t.TempDir()
	r := &root{t, filepath.Join(top, "root")}
	mount(t, "tmpfs", top, "tmpfs", 0, "mode=755")

	for _, dir := range []string{"root", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}

	mount(t, "overlay", r.dir, "overlay", 0, "lowerdir=/,upperdir="+top+"/upper,workdir="+top+"/work")
	for _, dir := range []string{"/proc", "/dev"} {
		mount(t, dir, r.dir+dir, "", unix.MS_BIND, "")
	}

	// Files that a developer may have installed here.
	for _, name := range []string{"/etc/crisp", "/etc/crictl.yaml", "/etc/selinux", "/etc/cni", "/opt/cni", "/run", "/var/lib/crisp", "/var/lib/rpm", "/usr/share/crisp", "/usr/bin/systemctl"} {
		if err := os.RemoveAll(r.dir + name); err != nil {
			t.Fatal(err)
		}
	}

	for name, text := range map[string]string{"/usr/bin/systemctl": systemctl, "/run/systemd/system/of-others.service": ""} {
		r.write(name, text)
	}
	return r
}

func mount(t *testing.T, source, target, kind string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		t.Fatalf("mount %s at %s: %v", source, target, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

func (r *root) write(name, text string) {
	r.t.Helper()
	if err := os.MkdirAll(filepath.Dir(r.dir+name), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.dir+name, []byte(text), 0o755); err != nil {
		r.t.Fatal(err)
	}
}

// bring copies a file of the machine into the root, and returns its path there.
func (r *root) bring(file string) string {
	r.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		r.t.Fatal(err)
	}
	name := "/brought/" + filepath.Base(file)
	r.write(name, string(data))
	return name
}

// run runs a command in the root and returns its output.
func (r *root) run(name string, args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), name, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: r.dir}
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// calls returns the recorded systemctl calls since the last time.
func (r *root) calls() string {
	r.t.Helper()
	data, err := os.ReadFile(r.dir + "/systemctl.log")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.t.Fatal(err)
	}
	if err := os.RemoveAll(r.dir + "/systemctl.log"); err != nil {
		r.t.Fatal(err)
	}
	return string(data)
}

// has checks which of the files are there.
func (r *root) has(want bool, names ...string) {
	r.t.Helper()
	for _, name := range names {
		if _, err := os.Lstat(r.dir + name); (err == nil) != want {
			r.t.Errorf("%s: %v, want it there: %t", name, err, want)
		}
	}
}

func (r *root) read(name string) string {
	r.t.Helper()
	data, err := os.ReadFile(r.dir + name)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(data)
}
