package pod

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestEmptyRemovesItsFilesAlone has an output directory whose name is a pattern, and
// a file of somebody else's in it.
func TestEmptyRemovesItsFilesAlone(t *testing.T) {
	base := t.TempDir()
	dir, other := filepath.Join(base, "web[12]"), filepath.Join(base, "web1")
	kept := []string{filepath.Join(other, "container-0.tar"), filepath.Join(other, "x"), filepath.Join(dir, "notes")}
	err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(other, 0o700))
	for _, path := range append(kept, filepath.Join(dir, "container-0.tar")) {
		err = errors.Join(err, os.WriteFile(path, nil, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}

	if err := empty(dir, []string{dumpFile, "container-0.tar", "container-1.tar"}); err != nil {
		t.Error(err)
	}
	for _, path := range kept {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}
