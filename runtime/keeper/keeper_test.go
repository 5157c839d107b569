package keeper

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/spawn"
	"crisp/runtime/wire"
)

// TestEndIsTakenBack has a keeper that is about to end wait for the lock, under
// which a daemon greets it.
func TestEndIsTakenBack(t *testing.T) {
	k := newKeeper(t.TempDir(), spawn.Options{})
	lock, err := os.Create(filepath.Join(k.stateDir, lockName))
	if err != nil {
		t.Fatal(err)
	}

	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.stateDir, socketName), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	asked := make(chan struct{}, 2)
	ended := make(chan bool)
	go func() {
		is, err := k.end(nil, func() bool { asked <- struct{}{}; return k.idle() })
		if err != nil {
			t.Error(err)
		}
		ended <- is
	}()

	<-asked
	k.mu.Lock()
	k.sessions[&session{}] = true
	k.mu.Unlock()
	lock.Close()

	if <-ended {
		t.Error("it ended, though a daemon was there")
	}
	if _, err := os.Stat(filepath.Join(k.stateDir, socketName)); err != nil {
		t.Errorf("its socket: %v", err)
	}
}

// TestSpare wants a keeper to be in use until the end of its last process is
// recorded, not only known.
func TestSpare(t *testing.T) {
	for name, test := range map[string]struct {
		e     entry
		spare bool
	}{
		"starting":          {entry{}, false},
		"sandbox alone":     {entry{started: true}, true},
		"running":           {entry{started: true, proc: &proc{}}, false},
		"ended, and known":  {entry{started: true, proc: &proc{}, exit: &wire.Exited{}}, true},
		"adopted, and runs": {entry{started: true, adopted: true, proc: &proc{}}, false},
	} {
		k := newKeeper(t.TempDir(), spawn.Options{})
		k.entries["web"] = &test.e
		if got := k.spare(); got != test.spare {
			t.Errorf("%s: spare %v, want %v", name, got, test.spare)
		}
	}
}

// TestEndOfAnAdoptedProcess wants nothing to be awaited by a keeper that ends.
func TestEndOfAnAdoptedProcess(t *testing.T) {
	pidfd, err := unix.PidfdOpen(os.Getpid(), unix.PIDFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	watch := os.NewFile(uintptr(pidfd), "pidfd")
	defer watch.Close()
	k := newKeeper(t.TempDir(), spawn.Options{})
	close(k.leave)
	if _, _, err := k.awaitEnd(os.Getpid(), watch); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v, want %v", err, os.ErrClosed)
	}
}

// TestEndHangsUp ends a keeper to which daemons have just connected: one that
// has not greeted yet, and one that comes when it is too late.
func TestEndHangsUp(t *testing.T) {
	k := newKeeper(t.TempDir(), spawn.Options{})
	connect := func() *os.File {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		k.welcome(fds[1])
		return os.NewFile(uintptr(fds[0]), "daemon")
	}

	early := connect()
	defer early.Close()
	shutDown(t, k)
	late := connect()
	defer late.Close()

	for name, daemon := range map[string]*os.File{"early": early, "late": late} {
		if n, err := daemon.Read(make([]byte, 1)); n != 0 {
			t.Errorf("the %s daemon reads %d bytes, %v; want the end", name, n, err)
		}
	}
}

// shutDown ends a keeper's connections, which must not hold it up.
func shutDown(t *testing.T, k *keeper) {
	t.Helper()
	listener, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { k.shut(listener); close(ended) }()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the keeper does not end")
	}
}
