package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// holdersOfMemory have memory that they share with others, and files of the pod's /dev/shm.
func holdersOfMemory() map[string]holder {
	return map[string]holder{
		"shared memory object":             func() (func() error, error) { return mapFile("/dev/shm/object", false) },
		"shared memory object, removed":    func() (func() error, error) { return mapFile("/dev/shm/removed", true) },
		"shared memory object with a hole": func() (func() error, error) { return holdHole("/dev/shm/hole") },
		"shared memory object of others":   func() (func() error, error) { return holdOwned("/dev/shm/owned") },
		"semaphore":                        func() (func() error, error) { return holdRenamed("/dev/shm", "sem.held") },
		"semaphore in a directory":         func() (func() error, error) { return holdRenamed("/dev/shm/dir", "sem.held") },
		"file by a name that it has lost":  func() (func() error, error) { return holdRenamed("/tmp/renamed", "kept") },
		"large deleted file":               func() (func() error, error) { return holdLarge("/tmp/large") },

		// These two are in different containers.
		"memory shared by containers, one":     func() (func() error, error) { return holdTogether("ping", "pong") },
		"memory shared by containers, another": func() (func() error, error) { return holdTogether("pong", "ping") },

		"memory shared with a child": holdForked,
		"memfd shared with a child": func() (func() error, error) {
			fd, err := unix.MemfdCreate("shared", unix.MFD_CLOEXEC)
			if err != nil {
				return nil, err
			}
			f := os.NewFile(uintptr(fd), "memfd")
			child := exec.Command("/bin/sh", "-c", "while ! test -e "+holdsDir+"/on; do sleep 0.05; done; echo from the child >&3; sleep 1000")
			child.ExtraFiles = []*os.File{f}
			return func() error {
				return soon(func() error { return readBack(io.NewSectionReader(f, 0, 99), "from the child\n") })
			}, child.Start()
		},
	}
}

// soon waits until something succeeds, not for long.
func soon(try func() error) (err error) {
	for range 200 {
		if err = try(); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// mapShared maps an open file.
func mapShared(f *os.File, size int) ([]byte, error) {
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// holdHole maps the end of a file that is longer than any memory.
func holdHole(path string) (func() error, error) {
	const far = 1 << 40
	f, err := os.Create(path)
	if err == nil {
		_, err = f.WriteAt([]byte("far"), far)
	}
	return func() error {
		var st unix.Stat_t
		err := unix.Fstat(int(f.Fd()), &st)
		return errors.Join(err, want(st.Size, far+3), want(st.Blocks <= 16, true), readBack(io.NewSectionReader(f, far, 3), "far"))
	}, err
}

// holdOwned has files of other users and modes, and a link.
func holdOwned(path string) (func() error, error) {
	when := time.Unix(1_000_000_000, 0)
	err := errors.Join(
		os.WriteFile(path, []byte("owned"), 0o600), os.Chmod(path, 0o647), os.Chown(path, 1234, 4321), os.Chtimes(path, when, when),
		os.Symlink("owned", path+"-link"), os.Link(path, path+"-hard"),
	)
	return func() error {
		var st, hard unix.Stat_t
		err := errors.Join(unix.Stat(path, &st), unix.Stat(path+"-hard", &hard))
		target, lerr := os.Readlink(path + "-link")
		return errors.Join(err, lerr, want(st.Uid, 1234), want(st.Gid, 4321), want(st.Mode&0o7777, 0o647), want(st.Mtim.Sec, when.Unix()),
			want(hard.Ino, st.Ino), want(target, "owned"))
	}, err
}

// holdRenamed has a file mapped as sem_open does: made under one name, which is removed when it
// has another. Nothing else is in its directory afterwards.
func holdRenamed(dir, name string) (func() error, error) {
	first, second := filepath.Join(dir, "first-"+name), filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(first)
	if err != nil {
		return nil, err
	}
	err = f.Truncate(4096)
	b, merr := mapShared(f, 4096)
	if err := errors.Join(err, merr, f.Close(), os.Link(first, second), os.Remove(first)); err != nil {
		return nil, err
	}

	copy(b, "before")
	return func() error {
		copy(b[100:], "after")
		text, err := os.ReadFile(second)
		if err != nil {
			return err
		}
		err = errors.Join(want(string(text[:6]), "before"), want(string(text[100:105]), "after"))
		names, derr := filepath.Glob(filepath.Join(dir, "*link_remap*"))
		return errors.Join(err, derr, want(strings.Join(names, " "), ""))
	}, nil
}

// holdLarge has a deleted file that is too large for CRIU's own limit.
func holdLarge(path string) (func() error, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	text := bytes.Repeat([]byte("large "), 1<<20)
	_, err = f.Write(text)
	return func() error {
		got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
		return errors.Join(err, want(bytes.Equal(got, text), true))
	}, errors.Join(err, os.Remove(path))
}

// holdTogether has memory in common with another container: it writes a word, and waits for
// the other's.
func holdTogether(write, wait string) (func() error, error) {
	f, err := os.OpenFile("/dev/shm/together", os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	err = f.Truncate(4096)
	b, merr := mapShared(f, 4096)
	if err := errors.Join(err, merr, f.Close()); err != nil {
		return nil, err
	}

	at := map[string]int{"ping": 0, "pong": 100}
	return func() error {
		copy(b[at[write]:], write)
		return soon(func() error { return want(string(b[at[wait]:at[wait]+4]), wait) })
	}, nil
}

// holdForked has memory without a name in common with a child that has not executed anything.
// The child answers what is written there.
func holdForked() (func() error, error) {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	if err := fork(b); err != nil {
		return nil, err
	}
	return func() error {
		b[0] = 'a'
		return soon(func() error { return want(b[1], 'b') })
	}, nil
}

// fork starts the child of holdForked. It must not use the runtime, of which it has no threads.
//
//go:norace
func fork(b []byte) error {
	pause := syscall.Timespec{Nsec: 10_000_000}
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("fork: %w", errno)
	}
	if pid > 0 {
		return nil
	}
	for {
		if b[0] == 'a' {
			b[1] = 'b'
		}
		_, _, _ = syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
	}
}

// pairOf makes a pair of sockets, with two messages in it.
func pairOf(kind int) (func() error, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
	if err != nil {
		return nil, err
	}
	for _, text := range []string{"one", "second"} {
		_, werr := unix.Write(fds[0], []byte(text))
		err = errors.Join(err, werr)
	}

	return func() error {
		b := make([]byte, 99)
		for _, text := range []string{"one", "second"} {
			n, err := unix.Read(fds[1], b)
			if err := errors.Join(err, want(string(b[:max(n, 0)]), text)); err != nil {
				return err
			}
		}
		_, err := unix.Write(fds[1], []byte("back"))
		n, rerr := unix.Read(fds[0], b)
		return errors.Join(err, rerr, want(string(b[:max(n, 0)]), "back"))
	}, err
}
