// Package netnstest makes network namespaces for tests.
package netnstest

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// New makes a network namespace with its loopback up. It lives until the test
// ends, or longer if the test pins it.
func New(t testing.TB) *os.File {
	t.Helper()
	var ns *os.File
	done := make(chan error, 1)
	go func() {
		var err error
		ns, err = unshare()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// unshare keeps its thread locked when it fails, to end with the goroutine.
func unshare() (*os.File, error) {
	runtime.LockOSThread()
	outside, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer outside.Close()

	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	if err := loopbackUp(); err != nil {
		return nil, err
	}

	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}

	if err := unix.Setns(int(outside.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	runtime.UnlockOSThread()
	return ns, nil
}

func loopbackUp() error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, lo)
}
