// Package sealed makes memory files that no process can modify, not even one
// with write access to this process's descriptors.
package sealed

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// seals forbid every modification, and further seals.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

const (
	// busyTime is how long the kernel may hold pages of a new file.
	busyTime  = 5 * time.Second
	busyDelay = 10 * time.Millisecond
)

// Program returns a sealed copy of the program at path, to be executed by its
// descriptor: a container that opens the running program through /proc cannot
// write to the one on disk. name is what /proc shows.
func Program(name, path string) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open program: %w", err)
	}
	defer src.Close()
	image, err := New(name, func(image *os.File) error {
		_, err := io.Copy(image, src)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", path, err)
	}
	return image, nil
}

// New returns a sealed, executable file with what fill writes.
func New(name string, fill func(*os.File) error) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("make memfd: %w", err)
	}

	f := os.NewFile(uintptr(fd), name)
	if err := fill(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("write memfd: %w", err)
	}

	if err := Seal(fd); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Seal seals a memfd that was made with MFD_ALLOW_SEALING and is not mapped for
// writing. The kernel refuses with EBUSY while a page of the file is
// referenced, as it is during reclaim or migration; so Seal retries for a
// while.
func Seal(fd int) error {
	for end := time.Now().Add(busyTime); ; time.Sleep(busyDelay) {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return fmt.Errorf("seal memfd: %w", err)
		}
	}
}

// Is reports whether a file is sealed like those of this package.
func Is(f *os.File) bool {
	have, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	return err == nil && have&seals == seals
}
