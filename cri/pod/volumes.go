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

// makeVolume makes the directory of an anonymous volume and copies into it what
// the image has at the volume's path. The content is the image's and thus
// hostile: it is read below the root only, and links are copied, not followed.
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
