package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inChroot marks the copy of this test that runs in a chroot.
const inChroot = "CRISP_TEST_CHROOT"

// TestChrootIsLeft runs the test program in a chroot, where its namespaces must
// have the chroot as their root nevertheless, and the machine's root must not
// change.
func TestChrootIsLeft(t *testing.T) {
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("the test changes mounts")
	}
	if os.Getenv(inChroot) != "" {
		rootsAreOne(t)
		return
	}

	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}

	if err := unix.Mount("/", root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}

	// The mounts below it are shared with their originals.
	if err := unix.Mount("", root, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()

	before := mounts(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestChrootIsLeft$", "-test.v")
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, isolatedEnv+"=") }), inChroot+"=yes")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/" // the present one is outside of the chroot

	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestChrootIsLeft") {
		t.Errorf("in a chroot: %v\n%s", err, out)
	}
	if after := mounts(t); after != before {
		t.Errorf("mounts were\n%s\nand are\n%s", before, after)
	}
}

// rootsAreOne compares the root of the program with that of its namespace.
func rootsAreOne(t *testing.T) {
	t.Helper()
	errs := make(chan error, 1)
	var mine, namespaces place
	go func() {
		runtime.LockOSThread()
		errs <- func() (err error) {
			if mine, err = rootOfThread(); err != nil {
				return err
			}
			fd, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)

			namespaces, err = rootOfNamespace(fd)
			return err
		}()
	}()

	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	if mine != namespaces {
		t.Errorf("the root is %+v, the namespace's %+v", mine, namespaces)
	}
}

func mounts(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
