package keeper

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/spawn"
	"crisp/runtime/wire"
)

// storing is a keeper with a service manager that reads on request.
func storing(t *testing.T) (k *keeper, read func() []string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })

	address := filepath.Join(t.TempDir(), "notify")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: address}); err != nil {
		t.Fatal(err)
	}

	k = newKeeper(t.TempDir(), spawn.Options{})
	k.store = &store{address: address}
	return k, func() (said []string) {
		buf := make([]byte, 4096)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) {
				return said
			}
			if err != nil {
				t.Fatal(err)
			}
			said = append(said, string(buf[:n]))
		}
	}
}

// pinned is an entry with one descriptor.
func pinned(t *testing.T) *entry {
	t.Helper()
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &entry{id: "pod", kind: wire.Sandbox, held: wire.Files{{Role: wire.Namespace.Of("net"), FD: int(f.Fd())}}}
}

// TestStoreHasRoomForNames fills the environment variable that carries the
// names to the next keeper.
func TestStoreHasRoomForNames(t *testing.T) {
	k, read := storing(t)
	e := pinned(t)
	k.deposit(e)
	if said := read(); len(said) != 2 || e.stored == nil || k.store.names != len("1:1.m0:") {
		t.Fatalf("stored %q, names take up %d", said, k.store.names)
	}

	k.withdraw(e, "")
	if said := read(); len(said) == 0 || k.store.names != 0 {
		t.Errorf("withdrawn %q, names take up %d", said, k.store.names)
	}

	k.store.names = maxNames - 10
	k.deposit(e)
	if said := read(); len(said) > 0 || e.stored != nil || k.store.names != maxNames-10 {
		t.Errorf("without room stored %q, names take up %d", said, k.store.names)
	}

	// The kernel's limit includes the variable's name.
	if err := execWith("LISTEN_FDNAMES=crisp-keeper.socket:" + strings.Repeat("x", maxNames)); err != nil {
		t.Errorf("a program is not executed with so many names: %v", err)
	}
}

func execWith(env string) error {
	p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{Env: []string{env}})
	if err != nil {
		return err
	}
	_, err = p.Wait()
	return err
}

// TestUnresponsiveManager stores with a manager that does not read: that takes
// time once, and it is notified again once it reads.
func TestUnresponsiveManager(t *testing.T) {
	k, read := storing(t)
	e := pinned(t)
	var longest, last time.Duration
	for range 1000 {
		began := time.Now()
		k.deposit(e)
		last = time.Since(began)
		longest = max(longest, last)
		if k.store.unresponsive {
			break
		}
	}
	if !k.store.unresponsive || longest < storeTime {
		t.Fatalf("waited %v, unresponsive %v", longest, k.store.unresponsive)
	}

	began := time.Now()
	k.deposit(e)
	if took := time.Since(began); took > storeTime/2 {
		t.Errorf("waited %v for a manager that is known to be unresponsive", took)
	}

	read()
	k.deposit(e)
	if said := read(); len(said) != 2 || k.store.unresponsive {
		t.Errorf("once it reads it gets %q, unresponsive %v", said, k.store.unresponsive)
	}
}
