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

// TestExitIsAborted has a keeper that is about to exit wait for the lock, while
// its holder, a daemon, connects.
func TestExitIsAborted(t *testing.T) {
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
		is, err := k.exitIf(nil, func() bool { asked <- struct{}{}; return k.idle() })
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
		t.Error("it exited, though a daemon was connected")
	}
	if _, err := os.Stat(filepath.Join(k.stateDir, socketName)); err != nil {
		t.Errorf("its socket: %v", err)
	}
}

// TestDrained expects a keeper to stay until the exit of its last process is recorded.
func TestDrained(t *testing.T) {
	for name, test := range map[string]struct {
		e       entry
		drained bool
	}{
		"starting":          {entry{}, false},
		"sandbox alone":     {entry{started: true}, true},
		"running":           {entry{started: true, proc: &proc{}}, false},
		"ended, and known":  {entry{started: true, proc: &proc{}, exit: &wire.Exited{}}, true},
		"adopted, and runs": {entry{started: true, adopted: true, proc: &proc{}}, false},
	} {
		k := newKeeper(t.TempDir(), spawn.Options{})
		k.entries["web"] = &test.e
		if got := k.drained(); got != test.drained {
			t.Errorf("%s: drained %v, want %v", name, got, test.drained)
		}
	}
}

// TestExitStopsWaitForAdopted expects a keeper that exits to stop waiting for
// adopted processes.
func TestExitStopsWaitForAdopted(t *testing.T) {
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

// TestExitDisconnects shuts a keeper down to which daemons have just connected:
// one before its handshake, and one after the shutdown.
func TestExitDisconnects(t *testing.T) {
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
			t.Errorf("the %s daemon reads %d bytes, %v; want EOF", name, n, err)
		}
	}
}

// shutDown shuts a keeper down; its connections must not delay that.
func shutDown(t *testing.T, k *keeper) {
	t.Helper()
	listener, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { k.shutdown(listener); close(ended) }()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the keeper does not exit")
	}
}
