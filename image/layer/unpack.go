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
	// maxDepth is how many directories deep a file may lie. It bounds what
	// looking a name up costs, and the descriptors of a walk.
	maxDepth   = 256
	maxEntries = 20_000_000
	// maxHeaders bounds what one entry's headers take in the archive: its
	// extended header, long names and the map of a sparse file.
	maxHeaders = 256 << 10

	copyBuffer = 128 << 10
)

// Limits bound what a layer may unpack to.
type Limits struct {
	// Bytes is the size of the archive and of the files in it.
	Bytes int64
	// Much allows for a layer that takes up to 140 MiB of memory, because of its
	// zstd window or the names of its directories. Without it 20 MiB are
	// enough, and such a layer is refused with [ErrMuch].
	Much bool
}

// unpacker writes one archive into one directory.
type unpacker struct {
	ctx  context.Context // of one archive
	root *os.File
	// base means that nothing lies below, so that whiteouts are void.
	base   bool
	limits Limits

	dirs dirCache
	crew *crew
	// failed is what the crew failed at.
	failed error
	dirNames
	// opaque means that nothing of the layers below shows.
	opaque  bool
	entries int
	bytes   int64
	usage   store.Usage
	buf     []byte
}

// Source opens the packed layer. Reads from it end when ctx does.
type Source func(ctx context.Context) (io.ReadCloser, error)

// unpack writes the archive from open to the directory root and returns the
// digest of the uncompressed archive. It reads the source to its end.
//
// Three stages run side by side: reading the source, decompressing, and
// hashing and writing the files.
func unpack(ctx context.Context, root *os.File, open Source, base bool, limits Limits) (*unpacker, digest.Digest, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	src, err := open(ctx)
	if err != nil {
		return nil, "", err
	}
	defer src.Close()

	packed := newReadAhead(src)
	// Stages end in the order in which data flows, so that none waits for another.
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

	if plain, err = decompress(packed, limits.Much); err != nil {
		return nil, "", err
	}
	ahead = newReadAhead(plain)
	counted := &countedReader{ctx: ctx, r: ahead, rest: limits.Bytes, header: math.MaxInt64, hash: digest.SHA256.Digester()}
	u := &unpacker{
		ctx: ctx, root: root, base: base, limits: limits,
		dirNames: newDirNames(limits.Much), buf: make([]byte, copyBuffer),
	}

	u.dirs.settled = u.settled
	u.crew = newCrew()
	err = u.archive(counted)
	if err == nil {
		err = u.settled()
	}

	// The crew uses the directories.
	u.crew.close()
	defer u.dirs.close()
	if err != nil {
		return nil, "", err
	}

	// What follows the archive's end counts for the digests all the same.
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
		// What the reader reads now it keeps in memory and decodes.
		r.header = maxHeaders
		hdr, err := tr.Next()
		r.header = math.MaxInt64
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return archiveError(err)
		}

		if err := u.whole(hdr, &cancelledReader{u.ctx, tr}); u.failed != nil {
			return u.failed // in an earlier entry
		} else if err != nil {
			return fmt.Errorf("unpack %q: %w", shorten(hdr.Name), archiveError(err))
		}
	}
}

// whole unpacks one entry and reads what is left of its body.
func (u *unpacker) whole(hdr *tar.Header, body io.Reader) error {
	if u.entries++; u.entries > maxEntries {
		return fmt.Errorf("%w: more than %d entries", ErrTooLarge, maxEntries)
	}
	// Sparse files are longer than the archive that they come in.
	if u.bytes += hdr.Size; u.bytes > u.limits.Bytes || hdr.Size < 0 {
		return fmt.Errorf("%w: files of more than %d bytes", ErrTooLarge, u.limits.Bytes)
	}
	if err := u.entry(hdr, body); err != nil {
		return err
	}
	_, err := io.CopyBuffer(io.Discard, onlyReader{body}, u.buf)
	return err
}

// cancelledReader reads until ctx ends. The holes of a sparse file are read
// without reading the archive.
type cancelledReader struct {
	ctx context.Context // io.Reader has no room for it
	r   io.Reader
}

// Read reads on.
func (c *cancelledReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// archiveError tells a broken archive from a broken source of it or disk.
func archiveError(err error) error {
	for _, broken := range []error{
		tar.ErrHeader, tar.ErrFieldTooLong, io.ErrUnexpectedEOF,
		// What the kernel says of names and links that make no sense.
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

// countedReader hashes an archive and ends it at a limit.
type countedReader struct {
	ctx  context.Context // io.Reader has no room for it
	r    io.Reader
	rest int64
	// header is what may be read until the next entry begins.
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
		return 0, fmt.Errorf("%w: headers of an entry of more than %d bytes", ErrTooLarge, maxHeaders)
	}
	if c.rest < 0 {
		return 0, fmt.Errorf("%w: archive", ErrTooLarge)
	}
	c.hash.Hash().Write(p[:n])
	return n, err
}

// entry unpacks one entry.
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

// entryPath cleans the name of an entry. A leading slash is what some tools
// write; a name that leads out of the layer is what no tool writes.
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
	// A name may be part of a header that is much longer.
	return strings.Clone(clean), nil
}

// whiteout hides something of the layers below.
func (u *unpacker) whiteout(dirPath, base string) error {
	if err := u.settled(); err != nil {
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
		return nil // bookkeeping of a file system of old
	}

	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%w: whiteout of nothing", ErrInvalid)
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

	// The layer has something of that name itself. A file hides what is below
	// anyway, a directory does once it is opaque.
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

// finish sets the times of directories, which every entry made in them has
// changed, and takes their measure. A directory may be gone by now, replaced
// by a later entry.
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

// measure adds a finished file to the layer's usage.
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
