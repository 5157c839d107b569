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

// removeTree removes a directory of ours with all that is in it, of which
// containers may have made any number, in any depth. One that does not exist
// is no error.
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
