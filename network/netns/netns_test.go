package netns_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestPin(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	path := filepath.Join(t.TempDir(), "ns")
	ns := netnstest.New(t)

	if err := netns.Unpin(path); err != nil {
		t.Errorf("unpin before: %v", err)
	}

	// What an interrupted Pin leaves.
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}

	if _, err := netns.Open(path); !errors.Is(err, netns.ErrNotNamespace) {
		t.Errorf("open of a plain file: %v", err)
	}
	if err := netns.Pin(ns, path); err != nil {
		t.Fatal(err)
	}

	if err := netns.Pin(ns, path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("pin again: %v", err)
	}
	again, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()

	if inode(t, again) != inode(t, ns) {
		t.Error("opened another namespace")
	}
	for range 2 {
		if err := netns.Unpin(path); err != nil {
			t.Fatal(err)
		}
		if _, err := netns.Open(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open after unpin: %v", err)
		}
	}
}

func TestPinRefusesOtherFiles(t *testing.T) {
	testkit.Root(t)
	for _, name := range []string{"/proc/self/ns/mnt", "/dev/null"} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()

		path := filepath.Join(t.TempDir(), "ns")
		if err := netns.Pin(f, path); !errors.Is(err, netns.ErrNotNamespace) {
			t.Errorf("pin %s: %v", name, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("pin %s left a file", name)
		}
	}
}

func TestPinFollowsNoLink(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "victim"), filepath.Join(dir, "ns")
	if err := os.WriteFile(victim, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}

	if err := os.Symlink(victim, path); err != nil {
		t.Fatal(err)
	}
	if err := netns.Pin(netnstest.New(t), path); !errors.Is(err, unix.ELOOP) {
		t.Errorf("pin through a link: %v", err)
	}

	if data, err := os.ReadFile(victim); err != nil || string(data) != "x" {
		t.Errorf("the link's target has %q, %v", data, err)
	}
}

func TestDo(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	ns := netnstest.New(t)
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}

	for range 20 {
		var inside string
		err := netns.Do(ns, func() error {
			var err error
			inside, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}

		if want := fmt.Sprintf("net:[%d]", inode(t, ns)); inside != want || inside == here {
			t.Fatalf("ran in %s, not %s", inside, want)
		}
	}

	// No thread may be left in the namespace.
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}

	for _, thread := range threads {
		if in, err := os.Readlink(thread); err == nil && in != here {
			t.Errorf("%s is in %s", thread, in)
		}
	}
}

func TestDoFails(t *testing.T) {
	testkit.Root(t)
	f, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	ran := false
	if err := netns.Do(f, func() error { ran = true; return nil }); !errors.Is(err, unix.EINVAL) || ran {
		t.Errorf("entering another kind of namespace: ran %t, %v", ran, err)
	}

	failure := errors.New("mine")
	if err := netns.Do(netnstest.New(t), func() error { return failure }); err != failure {
		t.Errorf("got %v", err)
	}
}

func TestInterfacesCountTraffic(t *testing.T) {
	testkit.Root(t)
	ns := netnstest.New(t)
	err := netns.Do(ns, func() error {
		conn, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(make([]byte, 1000))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	list, err := netns.Interfaces(ns)
	if err != nil {
		t.Fatal(err)
	}

	if len(list) != 1 || !list[0].Name.Is("lo") {
		t.Fatalf("interfaces are %+v", list)
	}

	// The datagram, and the answer that nobody listens.
	if lo := list[0]; lo.Tx.Bytes < 1028 || lo.Tx.Packets < 1 || lo.Rx != lo.Tx {
		t.Errorf("counted %+v", lo)
	}
}

// TestShare makes a directory whose mounts go on to others, once.
func TestShare(t *testing.T) {
	testkit.Root(t)
	dir := filepath.Join(t.TempDir(), "netns")
	for range 2 {
		if err := netns.Share(dir); err != nil {
			t.Fatal(err)
		}
	}

	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil {
		t.Fatal(err)
	}

	// Where its file system is shared already there is nothing to do.
	if len(mounts) > 1 || len(mounts) == 1 && !strings.Contains(mounts[0].Optional, "shared:") {
		t.Errorf("mounted are %v", mounts)
	}

	st, err := os.Stat(dir)
	if err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("the directory's mode is %v, %v", st.Mode(), err)
	}

	for range mounts {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}
}

// TestRemoveTable removes a table, and one that does not exist.
func TestRemoveTable(t *testing.T) {
	testkit.Root(t)
	ns := netnstest.New(t)
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"CRIU-12", "CRIU-123"} {
		conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}

	for range 2 {
		if err := netns.RemoveTable(ns, "CRIU-12"); err != nil {
			t.Error(err)
		}
	}
	tables, err := conn.ListTables()
	if err != nil || len(tables) != 1 || tables[0].Name != "CRIU-123" {
		t.Errorf("left are %v, %v", tables, err)
	}
}
