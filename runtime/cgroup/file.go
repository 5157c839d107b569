package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// ownerAttr marks the directories of parents that this package created, so that
// it may remove them when they are empty, also after a restart. Directories
// without it are kubelet's or the administrator's.
const ownerAttr = "trusted.crisp"

func mark(dir string) {
	// A parent that cannot be marked is merely left behind.
	_ = unix.Lsetxattr(dir, ownerAttr, []byte("1"), 0)
}

func ours(dir string) bool {
	var v [1]byte
	_, err := unix.Lgetxattr(dir, ownerAttr, v[:])
	return err == nil
}

// openRaw opens without the Go poller, whose registration costs more than
// the open of a cgroup file.
func openRaw(name string, flags int) (int, error) { return openRawAt(unix.AT_FDCWD, "", name, flags) }

// openRawAt is openRaw for a name in an open directory, whose path is for errors.
func openRawAt(at int, dir, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(at, name, flags|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: filepath.Join(dir, name), Err: err}
		}
		return fd, nil
	}
}

func writeFile(dir, name, value string) error {
	fd, err := openRaw(filepath.Join(dir, name), unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return writeRaw(fd, name, value)
}

func writeRaw(fd int, name, value string) error {
	for {
		_, err := unix.Write(fd, []byte(value))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write %q to %s: %w", value, name, err)
		}
		return nil
	}
}

// reader reads cgroup files into one buffer. The result of a read is valid
// until the next.
type reader struct {
	buf  []byte
	line [64]byte // longer than any number

	// many: several files of a directory are read one after the other, so it is kept
	// open: the kernel walks a path of cgroups slowly. close ends that.
	many bool
	dir  string
	at   int // the directory dir, unless dir is empty
}

// open opens a file for reading.
func (r *reader) open(dir, name string) (int, error) {
	if !r.many {
		return openRaw(dir+"/"+name, unix.O_RDONLY)
	}
	if r.dir != dir {
		r.close()
		at, err := openRaw(dir, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return -1, err
		}
		r.dir, r.at = dir, at
	}
	return openRawAt(r.at, dir, name, unix.O_RDONLY)
}

// close closes the directory that was read last.
func (r *reader) close() {
	if r.dir != "" {
		unix.Close(r.at)
		r.dir = ""
	}
}

// maxFile bounds the size of a file; io.stat of a machine with a thousand disks
// is far smaller.
const maxFile = 1 << 20

// read returns the whole of a file.
func (r *reader) read(dir, name string) ([]byte, error) {
	fd, err := r.open(dir, name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if r.buf == nil {
		r.buf = make([]byte, 8192)
	}
	data, err := readRaw(fd, dir+"/"+name, r.buf, maxFile)
	if cap(data) > len(r.buf) {
		r.buf = data[:cap(data)]
	}
	return data, err
}

// short returns a file of one short line. The kernel gives all of it at once, so
// that no second call has to find the end.
func (r *reader) short(dir, name string) ([]byte, error) {
	fd, err := r.open(dir, name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, r.line[:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: dir + "/" + name, Err: err}
		case n == len(r.line):
			return nil, &os.PathError{Op: "read", Path: dir + "/" + name, Err: unix.EFBIG}
		default:
			return r.line[:n], nil
		}
	}
}

// readRaw reads a file to its end, into buf if there is room.
func readRaw(fd int, name string, buf []byte, most int) ([]byte, error) {
	n := 0
	for {
		if n == len(buf) {
			if n >= most {
				return nil, &os.PathError{Op: "read", Path: name, Err: unix.EFBIG}
			}
			buf = append(buf, make([]byte, n)...)
		}

		m, err := unix.Read(fd, buf[n:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: name, Err: err}
		case m == 0:
			return buf[:n], nil
		default:
			n += m
		}
	}
}

// number reads a file that holds one number; "max" and -1 give none.
func (r *reader) number(dir, name string, none uint64) (uint64, error) {
	data, err := r.short(dir, name)
	if err != nil {
		return 0, err
	}
	v, err := parseNumber(bytes.TrimSpace(data), none)
	if err != nil {
		return 0, fmt.Errorf("parse %s: %w", name, err)
	}
	return v, nil
}

// optional is number for a file that some kernels lack; absent is 0.
func (r *reader) optional(dir, name string, none uint64) (uint64, error) {
	v, err := r.number(dir, name, none)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return 0, nil
	}
	return v, err
}

// table calls f for each "key value" line of a file.
func (r *reader) table(dir, name string, f func(key string, value uint64)) error {
	data, err := r.read(dir, name)
	if err != nil {
		return err
	}

	for line := range bytes.Lines(data) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		if !ok {
			continue
		}

		v, err := parseNumber(value, 0)
		if err != nil {
			return fmt.Errorf("parse %s: %s: %w", name, key, err)
		}
		f(string(key), v)
	}

	return nil
}

func parseNumber(b []byte, none uint64) (uint64, error) {
	if string(b) == "max" || string(b) == "-1" {
		return none, nil
	}
	return strconv.ParseUint(string(b), 10, 64)
}
