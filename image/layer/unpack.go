package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"crisp/image/store"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"

	opaqueXattr = "trusted.overlay.opaque"

	maxPath = 4096
	// maxDepth bounds the depth of directories, and with it the cost of resolving
	// a name and the descriptors of a walk.
	maxDepth   = 256
	maxEntries = 20_000_000
	// maxHeaders bounds the headers of one entry, in bytes: its extended header,
	// long names and the map of a sparse file.
	maxHeaders = 256 << 10

	copyBuffer = 128 << 10
)

// Limits bound the unpacking of a layer.
type Limits struct {
	// Bytes bounds the size of the archive and, separately, that of its files.
	Bytes int64
	// LargeMemory permits up to 140 MiB of memory, for a large zstd window and
	// many names of directories. Without it at most 20 MiB are used, and a layer
	// that needs more is refused with [ErrNeedsMemory].
	LargeMemory bool
}

// unpacker unpacks one archive into one directory.
type unpacker struct {
	ctx  context.Context // of one archive
	root *os.File
	// base means that there are no layers below, so that whiteouts have no effect.
	base   bool
	limits Limits

	dirs dirCache
	crew *crew
	// failed is the first error of the crew.
	failed error
	dirNames
	// opaque means that the layer hides everything below it.
	opaque  bool
	entries int
	bytes   int64
	usage   store.Usage
	buf     []byte
}

// Source opens the compressed layer. Reads from it end when ctx does.
type Source func(ctx context.Context) (io.ReadCloser, error)

// unpack unpacks the archive from open into the directory root and returns the
// digest of the uncompressed archive. It reads the source to its end.
//
// Three stages run concurrently: reading the source, decompressing, and hashing
// and writing the files.
func unpack(ctx context.Context, root *os.File, open Source, base bool, limits Limits) (*unpacker, digest.Digest, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	src, err := open(ctx)
	if err != nil {
		return nil, "", err
	}
	defer src.Close()

	packed := newReadAhead(src)
	// Stages are closed in the direction of the data flow, so that none waits for
	// another.
	var plain io.ReadCloser
	var ahead *readAhead
	defer func() {
		cancel()
		packed.Close()
		if ahead != nil {
			ahead.Close()
		}
		if plain != nil {
			plain.Close()
		}
	}()

	if plain, err = decompress(packed, limits.LargeMemory); err != nil {
		return nil, "", err
	}
	ahead = newReadAhead(plain)
	counted := &countedReader{ctx: ctx, r: ahead, rest: limits.Bytes, header: math.MaxInt64, hash: digest.SHA256.Digester()}
	u := &unpacker{
		ctx: ctx, root: root, base: base, limits: limits,
		dirNames: newDirNames(limits.LargeMemory), buf: make([]byte, copyBuffer),
	}

	u.dirs.flush = u.flush
	u.crew = newCrew()
	err = u.archive(counted)
	if err == nil {
		err = u.flush()
	}

	// In this order: the crew uses the directories.
	u.crew.close()
	defer u.dirs.close()
	if err != nil {
		return nil, "", err
	}

	// Data after the end of the archive is part of the digests.
	for _, rest := range []io.Reader{counted, packed} {
		if _, err := io.CopyBuffer(io.Discard, onlyReader{rest}, u.buf); err != nil {
			return nil, "", archiveError(err)
		}
	}

	if err := u.finish(); err != nil {
		return nil, "", err
	}
	return u, counted.hash.Digest(), nil
}

// archive unpacks all entries.
func (u *unpacker) archive(r *countedReader) error {
	tr := tar.NewReader(r)
	for {
		// The tar reader keeps the headers of an entry in memory: bound them.
		r.header = maxHeaders
		hdr, err := tr.Next()
		r.header = math.MaxInt64
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return archiveError(err)
		}

		if err := u.next(hdr, &cancelledReader{u.ctx, tr}); u.failed != nil {
			return u.failed // in an earlier entry
		} else if err != nil {
			return fmt.Errorf("unpack %q: %w", shorten(hdr.Name), archiveError(err))
		}
	}
}

// next unpacks one entry and reads the rest of its body.
func (u *unpacker) next(hdr *tar.Header, body io.Reader) error {
	if u.entries++; u.entries > maxEntries {
		return fmt.Errorf("%w: more than %d entries", ErrTooLarge, maxEntries)
	}
	// Sparse files are longer than the archive that they come in.
	if u.bytes += hdr.Size; u.bytes > u.limits.Bytes || hdr.Size < 0 {
		return fmt.Errorf("%w: files have more than %d bytes", ErrTooLarge, u.limits.Bytes)
	}
	if err := u.entry(hdr, body); err != nil {
		return err
	}
	_, err := io.CopyBuffer(io.Discard, onlyReader{body}, u.buf)
	return err
}

// cancelledReader reads until ctx ends. It is needed because the holes of a sparse
// file are read without reading from the archive, which would notice.
type cancelledReader struct {
	ctx context.Context // io.Reader has no room for it
	r   io.Reader
}

// Read reads, or returns the cause of the end of ctx.
func (c *cancelledReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// archiveError classifies errors that are the archive's fault as [ErrInvalid], as
// opposed to those of its source or of the disk.
func archiveError(err error) error {
	for _, broken := range []error{
		tar.ErrHeader, tar.ErrFieldTooLong, io.ErrUnexpectedEOF,
		// What the kernel returns for invalid names and links.
		unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG,
		unix.EINVAL, unix.EPERM, unix.EMLINK, unix.EXDEV, unix.E2BIG, unix.ERANGE,
	} {
		if errors.Is(err, broken) {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}

	if isCompressionError(err) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return err
}

type onlyReader struct{ io.Reader }

// countedReader hashes an archive and bounds its size.
type countedReader struct {
	ctx  context.Context // io.Reader has no room for it
	r    io.Reader
	rest int64
	// header is how much may be read before the next entry's body.
	header int64
	hash   digest.Digester
}

func (c *countedReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(p)
	c.rest -= int64(n)
	if c.header -= int64(n); c.header < 0 {
		return 0, fmt.Errorf("%w: headers of an entry have more than %d bytes", ErrTooLarge, maxHeaders)
	}
	if c.rest < 0 {
		return 0, fmt.Errorf("%w: archive", ErrTooLarge)
	}
	c.hash.Hash().Write(p[:n])
	return n, err
}

// entry unpacks one entry, perhaps without reading all of its body.
func (u *unpacker) entry(hdr *tar.Header, body io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := entryPath(hdr.Name)
	if err != nil {
		return err
	}

	if name == "." {
		if hdr.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the root is not a directory", ErrInvalid)
		}
		return u.setDir(".", u.root, hdr)
	}
	if strings.HasPrefix(path.Base(name), whiteoutPrefix) {
		return u.whiteout(path.Dir(name), path.Base(name))
	}

	return u.create(name, hdr, body)
}

// entryPath cleans the name of an entry. Some tools write a leading slash; no
// tool writes a name that leads out of the layer, so that is an attack.
func entryPath(name string) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("%w: name of %d bytes", ErrInvalid, len(name))
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") || strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("%w: name leaves the layer", ErrInvalid)
	}
	if strings.Count(clean, "/") > maxDepth {
		return "", fmt.Errorf("%w: more than %d directories deep", ErrInvalid, maxDepth)
	}
	// The name is a substring of the header, which it would keep in memory.
	return strings.Clone(clean), nil
}

// whiteout hides a file of the layers below, or all that a directory has there.
func (u *unpacker) whiteout(dirPath, base string) error {
	if err := u.flush(); err != nil {
		return err
	}
	dir, err := u.parent(dirPath)
	if err != nil {
		return err
	}

	if base == whiteoutOpaque {
		switch {
		case u.base:
			return nil
		case dirPath == ".":
			// Overlayfs does not look for the mark on a layer's root.
			u.opaque = true
			return nil
		}
		return setOpaque(dir)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil // metadata of aufs
	}

	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%w: whiteout without a name", ErrInvalid)
	}

	if u.base {
		return nil
	}
	err = unix.Mknodat(int(dir.Fd()), name, unix.S_IFCHR, 0)
	if err == nil {
		u.usage.Inodes++
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return err
	}

	// The layer itself has something of that name. A file hides what is below
	// anyway; a directory does once it is opaque.
	sub, err := openDir(dir, name)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}

	defer sub.Close()
	return setOpaque(sub)
}

func setOpaque(dir *os.File) error {
	return unix.Fsetxattr(int(dir.Fd()), opaqueXattr, []byte("y"), 0)
}

// finish sets the times of directories, which each file made in them has changed,
// and adds up their disk usage. A directory may have been replaced by a later
// entry.
func (u *unpacker) finish() error {
	for name, mtime := range u.listed {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		dir, err := u.dirs.open(u.root, name)
		if isGone(err) {
			continue
		}
		if err != nil {
			return err
		}

		if err := setTime(dir, mtime); err != nil {
			return fmt.Errorf("set time of %q: %w", shorten(name), err)
		}
		if err := u.measure(dir); err != nil {
			return err
		}
	}

	for name := range u.implied {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		dir, err := u.dirs.open(u.root, name)
		if isGone(err) {
			delete(u.implied, name)
			continue
		}
		if err != nil {
			return err
		}

		if err := u.measure(dir); err != nil {
			return err
		}
	}

	return nil
}

func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// measure adds a finished directory to the layer's disk usage.
func (u *unpacker) measure(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(f.Fd()), "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	u.usage = u.usage.Add(store.Usage{Bytes: uint64(st.Blocks) * 512, Inodes: 1})
	return nil
}

func shorten(s string) string {
	const limit = 200
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}
