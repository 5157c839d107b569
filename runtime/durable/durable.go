// Package durable changes files atomically: a reader, at any time and after any
// crash, finds the old or the new content, never a part.
//
// A file is written under a temporary name in its directory and renamed.
// Temporary files of a killed process are removed by [RemoveTemps], which the
// single owner of a directory calls before its first write. Data that changes
// often and is read only at start belongs in a [Journal]. Data written without
// a sync records the [BootID], and is not trusted in another boot.
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
// survives a power cut. perm is exact, regardless of the umask. If the final
// sync of the directory fails the new content is in place, but may be lost in a
// power cut.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	if err := replace(path, data, perm, true); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncDir(filepath.Dir(path))
}

// ReplaceFile replaces the content of path atomically for readers and for a
// writer that is killed, but not durably: after a power cut the file may be
// old, new or empty. It is for state that a reboot invalidates.
func ReplaceFile(path string, data []byte, perm os.FileMode) error {
	if err := replace(path, data, perm, false); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

// CreateFile writes a file without atomicity: a crash can leave a part of it.
// Readers must know otherwise, such as from a [Journal], that it is complete.
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
// write to a file of dir may be under way. A missing dir is not an error.
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
