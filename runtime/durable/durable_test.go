package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

type writer func(string, []byte, os.FileMode) error

var writers = map[string]writer{"WriteFile": WriteFile, "ReplaceFile": ReplaceFile}

func TestWrite(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for name, write := range map[string]writer{"WriteFile": WriteFile, "ReplaceFile": ReplaceFile, "CreateFile": CreateFile} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			for _, content := range []string{"first, and longer", "second"} {
				if err := write(path, []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(path)
				if err != nil || string(got) != content {
					t.Fatalf("content %q, %v, want %q", got, err, content)
				}
			}

			st, err := os.Stat(path)
			if err != nil || st.Mode() != 0o644 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
			assertNames(t, filepath.Dir(path), "state")
		})
	}
}

func TestReplaceFailureKeepsOld(t *testing.T) {
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "state")
			if err := os.MkdirAll(path+"/in-the-way", 0o755); err != nil {
				t.Fatal(err)
			}

			if err := write(path, []byte("x"), 0o644); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v does not name %s", err, path)
			}
			assertNames(t, dir, "state")

			if err := write(filepath.Join(dir, "missing", "state"), nil, 0o644); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("write in a missing directory: %v", err)
			}
		})
	}
}

// A reader during a replacement sees the old or the new content.
func TestReadersSeeWholeFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	content := func(i int) string { return strings.Repeat(fmt.Sprint(i%10), 50_000) }
	if err := ReplaceFile(path, []byte(content(0)), 0o600); err != nil {
		t.Fatal(err)
	}

	done := make(chan error)
	go func() {
		var err error
		for i := 0; i < 300 && err == nil; i++ {
			err = ReplaceFile(path, []byte(content(i)), 0o600)
		}
		done <- err
	}()

	for {
		got, err := os.ReadFile(path)
		if err != nil || len(got) != 50_000 || string(got) != content(int(got[0]-'0')) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}

		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
	}
}

func TestRemoveTemps(t *testing.T) {
	dir := t.TempDir()
	// The leftovers of a process killed between its write and its rename.
	f, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.Mkdir(filepath.Join(dir, tempPrefix+"directory"), 0o755); err != nil {
		t.Fatal(err)
	}

	if err := WriteFile(filepath.Join(dir, "state"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RemoveTemps(dir); err != nil {
		t.Fatal(err)
	}

	assertNames(t, dir, tempPrefix+"directory", "state")
	if err := RemoveTemps(filepath.Join(dir, "missing")); err != nil {
		t.Errorf("RemoveTemps of a missing directory: %v", err)
	}
}

func TestSyncDir(t *testing.T) {
	if err := SyncDir(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("SyncDir of a missing directory: %v", err)
	}
}

func assertNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("names in directory: %v, want %v", got, want)
	}
}
