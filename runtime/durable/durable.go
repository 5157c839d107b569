// Package durable changes files so that a reader, at any time and after any
// crash, finds the old content or the new one and never a part.
//
// A file is written under a temporary name in its directory and renamed. Temporary
// files that a killed process left behind are swept by [RemoveTemps], which the
// one owner of a directory calls before it starts writing there. What changes
// often and is read at a start only is a [Journal]. What is written without a sync
// records the [BootID], and is not trusted in another boot.
package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const tempPrefix = ".durable-"

// WriteFile replaces the content of path and returns when the new content
// survives a power cut. perm is exact: the umask has no part in it. When the
// error is that of the final sync of the directory the new content is in place,
// but may be lost with the power.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	if err := replace(path, data, perm, true); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncDir(filepath.Dir(path))
}

// ReplaceFile replaces the content of path atomically for readers and for a
// writer that is killed, but not durably: after a power cut the file may be
// old, new or empty. It is for state that a reboot makes void.
func ReplaceFile(path string, data []byte, perm os.FileMode) error {
	if err := replace(path, data, perm, false); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

// CreateFile writes a file whose user learns otherwise, such as from a
// [Journal], that it is whole: a crash can leave a part of it.
func CreateFile(path string, data []byte, perm os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if err := fill(f, data, perm, false); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// SyncDir makes the names in the directory path durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// RemoveTemps removes the temporary files that earlier calls left in dir. No
// write to a file of dir may be under way. A missing dir is no error.
func RemoveTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}

	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) && e.Type().IsRegular() {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}

	return errors.Join(errs...)
}

func replace(path string, data []byte, perm os.FileMode, sync bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return err
	}
	err = fill(f, data, perm, sync)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// fill writes and closes f.
func fill(f *os.File, data []byte, perm os.FileMode, sync bool) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
