package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

const (
	// The marks of a layer, as the OCI image specification defines them.
	whiteoutPrefix = ".wh."
	opaqueMark     = ".wh..wh..opq"

	// What those accept who unpack layers: the depth of directories, the bytes of a path
	// that leave room for a mark, and of a file's extended attributes.
	layerDepth      = 256
	layerPath       = maxPath - len("/"+opaqueMark)
	layerAttributes = 192 << 10
)

// WriteLayer writes the difference as a layer of an OCI image, without compression, and
// reports whether there is any: a layer without entries is not worth keeping. The
// container need not be frozen; each of its files is then as it was at some time.
func (d Diff) WriteLayer(ctx context.Context, to io.Writer) (changed bool, err error) {
	w := differ{Diff: d, ctx: ctx, tar: tar.NewWriter(&writer{ctx, to}), layer: true, linked: map[[2]uint64]string{}}
	if err := w.root(); err != nil {
		return false, fmt.Errorf("archive changed files: %w", err)
	}
	if err := w.directory(d.Upper, nil); err != nil {
		return false, fmt.Errorf("archive changed files: %.200q: %w", w.failed, err)
	}
	if err := w.tar.Close(); err != nil {
		return false, fmt.Errorf("archive changed files: %w", err)
	}
	return w.entries > 0, nil
}

// most is a bound, of a checkpoint or of a layer.
func (w *differ) most(checkpoint, layer int) int {
	if w.layer {
		return layer
	}
	return checkpoint
}

// root adds the root directory if it is not as in the image.
func (w *differ) root() error {
	var st, below unix.Stat_t
	if err := errors.Join(unix.Fstat(int(w.Upper.Fd()), &st), unix.Fstat(int(w.Lower.Fd()), &below)); err != nil {
		return err
	}
	h := w.header(&st, ".")
	h.Typeflag, h.Name = tar.TypeDir, "./"

	same := st.Mode == below.Mode && h.Uid == int(below.Uid) && h.Gid == int(below.Gid)
	err := rootpath.EachAttribute(w.Upper, w.IDs, func(string, []byte) error {
		same = false // the image's are not copied
		return nil
	})
	if err != nil || same {
		return err
	}
	return w.beginOpen(h, w.Upper)
}

// mark adds a mark in a directory.
func (w *differ) mark(dir []string, name string) error {
	return w.begin(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: path.Join(strings.Join(dir, "/"), name)})
}

// hideBelow marks a directory that hides the image's, if the image has one. overlayfs
// marks most new directories, to save itself a look.
func (w *differ) hideBelow(at []string) error {
	there, err := w.inImage(at, unix.O_DIRECTORY)
	if err != nil || !there {
		return err
	}
	return w.mark(at, opaqueMark)
}

// socket leaves out a socket, which a process makes again, but not what it has replaced.
func (w *differ) socket(at []string) error {
	if !w.layer {
		return nil
	}
	there, err := w.inImage(at, 0)
	if err != nil || !there {
		return err
	}
	return w.delete(at)
}

// inImage reports whether the image has something at a path that can be opened with
// flags.
func (w *differ) inImage(at []string, flags int) (bool, error) {
	f, err := rootpath.OpenUnlinked(w.Lower, strings.Join(at, "/"), unix.O_PATH|unix.O_NOFOLLOW|flags)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, nil // a link leads elsewhere
	}
	if err != nil {
		return false, fmt.Errorf("look into the image: %w", err)
	}
	return true, f.Close()
}
