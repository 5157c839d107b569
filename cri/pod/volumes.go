package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"crisp/cri/spec"
	"crisp/runtime/rootpath"
)

// makeVolume creates the directory of an anonymous volume and copies the
// image's content at the volume's path into it. The content is hostile: it is
// read only below the root, and links are copied, not followed.
func makeVolume(ctx context.Context, root *os.File, v spec.Volume) error {
	if err := os.MkdirAll(v.Source, 0o755); err != nil {
		return err
	}
	from, err := rootpath.Open(root, v.Path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}

	defer from.Close()
	to, err := os.Open(v.Source)
	if err != nil {
		return err
	}
	defer to.Close()

	switch err := rootpath.CopyTree(ctx, from, to, v.Owner); {
	case errors.Is(err, rootpath.ErrTooDeep):
		return fmt.Errorf("%w: volume of the image: %w", ErrInvalid, err)
	default:
		return err
	}
}
