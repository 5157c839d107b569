package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// maxFile is the length in bytes at which a file is moved away, maxFiles how
	// many are kept, with the present one.
	maxFile  = 64 << 20
	maxFiles = 5
)

// file is the present file of the log.
type file struct {
	path string
	f    *os.File
	size int64
	most int64 // maxFile, or less in tests
	// torn means that the file ends within a line, which could not be taken back.
	torn bool
}

// openFile opens the file at a path, which only root may read. Without a path there is
// none.
func openFile(path string) (*file, error) {
	if path == "" {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of the audit log: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}

	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file (%s): choose another path", path, st.Mode())
	}
	if err == nil {
		err = f.Chmod(0o600) // it may have been there before
	}
	if err == nil {
		out := &file{path: path, f: f, size: st.Size(), most: maxFile}
		out.torn, err = out.endsInLine()
		if err == nil {
			return out, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("open the audit log: %w", err), f.Close())
}

// endsInLine reports whether the last line is incomplete, as after a power cut.
func (f *file) endsInLine() (bool, error) {
	if f.size == 0 {
		return false, nil
	}
	r, err := os.OpenFile(f.path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	defer r.Close()
	last := make([]byte, 1)
	_, err = r.ReadAt(last, f.size-1)
	return last[0] != '\n', err
}

// write appends a line, or nothing.
func (f *file) write(line []byte) error {
	if f.size > 0 && f.size+int64(len(line)) > f.most {
		if err := f.rotate(); err != nil {
			return err
		}
	}
	if f.torn {
		line = append([]byte("\n"), line...)
	}

	n, err := f.f.Write(line)
	if err == nil {
		f.size, f.torn = f.size+int64(n), false
		return nil
	}
	if n > 0 && f.f.Truncate(f.size) != nil {
		f.size, f.torn = f.size+int64(n), true
	}
	return fmt.Errorf("write to the audit log %s: %w", f.path, err)
}

// rotate moves the file away and begins another one; the oldest is removed. The new
// one is there before anything is moved: failing again and again loses no old ones.
func (f *file) rotate() error {
	next, err := openFile(f.path + ".new")
	if err != nil {
		return err
	}
	name := func(i int) string {
		if i == 0 {
			return f.path
		}
		return f.path + "." + strconv.Itoa(i)
	}
	for i := maxFiles - 2; i >= 0; i-- {
		if err := os.Rename(name(i), name(i+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("move the audit log away: %w", err), next.f.Close())
		}
	}

	if err := os.Rename(next.path, f.path); err != nil {
		return errors.Join(fmt.Errorf("begin another audit log: %w", err), next.f.Close())
	}
	next.path, next.most = f.path, f.most
	f.close()
	*f = *next
	return nil
}

// close closes the file; there may be none.
func (f *file) close() {
	if f != nil {
		f.f.Close()
	}
}
