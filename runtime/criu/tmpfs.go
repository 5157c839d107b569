package criu

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// maxTarHeaders bounds the headers of a file in a tmpfs, in bytes, and maxTmpfsFiles
// the files of one: each takes memory of the kernel.
const (
	maxTarHeaders = 1 << 20
	maxTmpfsFiles = 1 << 20
)

// tmpfs is the content of a file system in memory, which CRIU has tar unpack.
type tmpfs struct {
	bytes   int64
	devices []AllowedDevice
}

// readTmpfs reads what a tmpfs has: tmpfs-dev-50.tar.gz.img has that of device 0:50.
func (i *Inventory) readTmpfs(d *imageDir, file string) error {
	number, ok := strings.CutSuffix(strings.TrimPrefix(file, "tmpfs-dev-"), ".tar.gz.img")
	id, err := strconv.ParseUint(number, 10, 32)
	if !ok || err != nil || strconv.FormatUint(id, 10) != number {
		return fmt.Errorf("%w: no image of CRIU is named %.100q", ErrImages, file)
	}
	f, _, err := d.take(file)
	if err != nil {
		return err
	}
	defer f.Close()

	t, err := readTar(d.ctx, f)
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrImages, file, err)
	}
	i.tmpfs[uint32(id)] = t
	i.bytes += t.bytes
	return nil
}

func readTar(ctx context.Context, f io.Reader) (*tmpfs, error) {
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	defer z.Close()

	from := &tarReader{ctx: ctx, r: z}
	r := tar.NewReader(from)
	t := new(tmpfs)
	for n := 0; ; n++ {
		from.header = maxTarHeaders
		h, err := r.Next()
		from.header = 0
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		if n == maxTmpfsFiles {
			return nil, fmt.Errorf("more than %d files", maxTmpfsFiles)
		}
		if err := t.add(h); err != nil {
			return nil, fmt.Errorf("%.100q: %w", h.Name, err)
		}
	}
}

// add checks and counts one file. That what has several names is counted for each does
// no harm.
func (t *tmpfs) add(h *tar.Header) error {
	names := []string{h.Name}
	switch h.Typeflag {
	case tar.TypeLink:
		names = append(names, h.Linkname)
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeFifo:
	case tar.TypeGNUSparse:
		return errors.New("it is sparse")
	case tar.TypeChar, tar.TypeBlock:
		kind := 'c'
		if h.Typeflag == tar.TypeBlock {
			kind = 'b'
		}
		if len(t.devices) == maxExternals {
			return fmt.Errorf("more than %d devices", maxExternals)
		}
		t.devices = append(t.devices, AllowedDevice{strings.Clone(path.Clean(h.Name)), kind, h.Devmajor, h.Devminor})
	default:
		return fmt.Errorf("it is of type %q", h.Typeflag)
	}

	for _, name := range names {
		if strings.HasPrefix(name, "/") || hasDots(name) {
			return errors.New("its name leads elsewhere")
		}
	}
	for key := range h.PAXRecords {
		if attribute, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok && strings.HasPrefix(attribute, "trusted.") {
			return fmt.Errorf("attribute %.100q", attribute)
		}
	}
	if h.Size < 0 || t.bytes > 1<<60 || h.Size > 1<<60 {
		return fmt.Errorf("a size of %d bytes", h.Size)
	}
	page := int64(os.Getpagesize())
	t.bytes += (h.Size + page - 1) / page * page
	return nil
}

// tarReader bounds headers, and ends with its context.
type tarReader struct {
	ctx    context.Context // io.Reader has no room for it
	r      io.Reader
	header int64
}

func (t *tarReader) Read(p []byte) (int, error) {
	if t.ctx.Err() != nil {
		return 0, context.Cause(t.ctx)
	}
	n, err := t.r.Read(p)
	if t.header > 0 {
		if t.header -= int64(n); t.header <= 0 {
			return 0, fmt.Errorf("headers of more than %d bytes", maxTarHeaders)
		}
	}
	return n, err
}

// hasDots reports whether a path has a part "..".
func hasDots(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// ghost is a file without a name.
type ghost struct{ mode uint32 }

// readGhost reads a file that had no name any more: its attributes, and its content in
// one piece or several.
func (i *Inventory) readGhost(d *imageDir, file string) error {
	f, size, err := d.take(file)
	if err != nil {
		return err
	}
	defer f.Close()
	mode, err := readGhost(newImageReader(d, f, maxEntry))
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrImages, file, err)
	}
	i.ghosts = append(i.ghosts, ghost{mode})
	i.bytes += size
	return nil
}

func readGhost(r *imageReader) (mode uint32, err error) {
	if err := r.begin(magicGhost); err != nil {
		return 0, err
	}
	var e ghost_file.GhostFileEntry
	if err := r.next(&e); err != nil {
		return 0, noEOF(err)
	}
	for e.GetChunks() {
		if r.d.ctx.Err() != nil {
			return 0, context.Cause(r.d.ctx)
		}
		var chunk ghost_file.GhostChunkEntry
		err := r.next(&chunk)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && chunk.GetLen() > 1<<60 {
			err = fmt.Errorf("a piece of %d bytes", chunk.GetLen())
		}
		if err == nil {
			err = r.skip(int64(chunk.GetLen()))
		}
		if err != nil {
			return 0, noEOF(err)
		}
	}

	switch e.GetMode() & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFIFO, unix.S_IFLNK, unix.S_IFSOCK:
		return e.GetMode(), nil
	}
	return 0, fmt.Errorf("a file of mode %o without a name", e.GetMode())
}
