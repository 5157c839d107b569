package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxMeasuredDepth bounds the descriptors that measuring holds.
const maxMeasuredDepth = 256

// Measure adds up the disk space and inodes of the tree at path, which may
// change meanwhile. Files with several names count once.
func Measure(path string) (bytes, inodes uint64, err error) {
	dir, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("measure: %w", err)
	}
	defer dir.Close()
	m := measurer{linked: map[uint64]bool{}}
	if err := m.directory(dir, 0); err != nil {
		return 0, 0, fmt.Errorf("measure: %w", err)
	}
	return m.bytes, m.inodes, nil
}

type measurer struct {
	bytes, inodes uint64
	linked        map[uint64]bool // inodes with several names
}

func (m *measurer) directory(dir *os.File, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	m.bytes += uint64(st.Blocks) * 512
	m.inodes++
	for {
		names, err := dir.Readdirnames(512)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := m.entry(dir, name, depth); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
				return err
			}
		}
	}
}

func (m *measurer) entry(dir *os.File, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR && depth < maxMeasuredDepth {
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		sub := os.NewFile(uintptr(fd), name)
		defer sub.Close()
		return m.directory(sub, depth+1)
	}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if m.linked[st.Ino] {
			return nil
		}
		m.linked[st.Ino] = true
	}
	m.bytes += uint64(st.Blocks) * 512
	m.inodes++
	return nil
}
