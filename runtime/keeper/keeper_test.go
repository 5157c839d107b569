package keeper

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/spawn"
)

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
	late := connect()
	defer late.Close()
	for name, daemon := range map[string]*os.File{"early": early, "late": late} {
		if n, err := daemon.Read(make([]byte, 1)); n != 0 {
			t.Errorf("the %s daemon reads %d bytes, %v; want the end", name, n, err)
		}
	}
}
