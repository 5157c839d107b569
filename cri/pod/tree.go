package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"crisp/runtime/rootpath"
)

// removeTree removes a directory of crisp's with its content, in which
// containers may have created any number of files, in any depth. A missing one
// is not an error.
func removeTree(ctx context.Context, path string) error {
	parent, err := os.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	defer parent.Close()
	if err := rootpath.RemoveAll(ctx, parent, filepath.Base(path)); err != nil {
		return fmt.Errorf("remove in %s: %w", filepath.Dir(path), err)
	}
	return nil
}
