package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"crisp/image/layer"
)

const (
	// maxEntries and maxEntryName bound an archive's files and their names, in bytes.
	maxEntries   = 10_000
	maxEntryName = 1 << 10
	// leastFree is the part of the disk that an archive must leave free, one in so
	// many.
	leastFree = 20
	// maxTrailer is what may follow the end of an archive: tar programs fill blocks.
	maxTrailer = 1 << 20
	archiveBuf = 256 << 10
)

// archive is the content of an archive of images, in files that are named by numbers in
// a temporary directory: no name in the archive becomes one on disk.
type archive struct {
	dir   string
	files map[string]archived // by cleaned name
	// docker lists what manifest.json refers to, by digest.
	docker map[digest.Digest]archived
}

// archived is a regular file of an archive.
type archived struct {
	path   string
	size   int64
	digest digest.Digest // SHA-256
}

// readArchive copies the regular files of an archive, a tar file with or without
// compression, to a directory of its own in temp. Links, devices and the rest are not
// looked at. The caller removes the directory, also after an error.
func readArchive(ctx context.Context, r io.Reader, temp string) (*archive, error) {
	dir, err := os.MkdirTemp(temp, "archive-*")
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	a := &archive{dir: dir, files: map[string]archived{}}
	plain, err := layer.Decompress(&interruptible{ctx, r})
	if err != nil {
		return a, fmt.Errorf("read archive: %w", err)
	}
	defer plain.Close()
	if err := a.read(plain); err != nil {
		return a, fmt.Errorf("read archive: %w", err)
	}
	return a, nil
}

// room is how many bytes may be written to a directory.
func room(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return (int64(st.Bavail) - int64(st.Blocks)/leastFree) * int64(st.Bsize), nil
}

// interruptible is a reader that ends with a context.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	return i.r.Read(p)
}

// read reads the files of a tar archive, as far as the disk has room.
func (a *archive) read(r io.Reader) error {
	buf := make([]byte, archiveBuf)
	t := tar.NewReader(r)
	for entries := 0; ; entries++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return end(r)
		}
		if err != nil {
			return invalidUnless(err)
		}
		if entries == maxEntries {
			return fmt.Errorf("%w: archive has more than %d files", ErrInvalid, maxEntries)
		}
		if h.Typeflag != tar.TypeReg && h.Size > 0 {
			// To read past it could take any time: it may be zeros.
			return fmt.Errorf("%w: archive has %d bytes in %q, which is no regular file", ErrInvalid, h.Size, truncate(h.Name))
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}

		name := path.Clean(h.Name)
		if len(name) > maxEntryName || !filepath.IsLocal(name) {
			return fmt.Errorf("%w: archive has a file with the name %q", ErrInvalid, truncate(h.Name))
		}
		if _, twice := a.files[name]; twice {
			return fmt.Errorf("%w: archive has two files with the name %q", ErrInvalid, truncate(name))
		}
		left, err := room(a.dir)
		if err != nil {
			return err
		}
		if h.Size > left {
			return fmt.Errorf("unpack archive: %w: it would leave less than %d%% of the disk free", unix.ENOSPC, 100/leastFree)
		}
		if a.files[name], err = a.keep(t, len(a.files), buf); err != nil {
			return err
		}
	}
}

// end requires that nothing else follows an archive, and reads the checksum of its
// compression.
func end(r io.Reader) error {
	n, err := io.CopyN(io.Discard, r, maxTrailer+1)
	switch {
	case n > maxTrailer:
		return fmt.Errorf("%w: something else follows the archive", ErrInvalid)
	case errors.Is(err, io.EOF):
		return nil
	}
	return invalidUnless(err)
}

// invalidUnless is the error of reading an archive that is truncated or is none.
func invalidUnless(err error) error {
	for _, format := range []error{tar.ErrHeader, io.ErrUnexpectedEOF, layer.ErrInvalid, layer.ErrTooLarge} {
		if errors.Is(err, format) {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return err
}

// keep copies a file of the archive.
func (a *archive) keep(r io.Reader, number int, buf []byte) (archived, error) {
	out := archived{path: filepath.Join(a.dir, strconv.Itoa(number))}
	f, err := os.OpenFile(out.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, filePerm)
	if err != nil {
		return archived{}, err
	}

	sum := sha256.New()
	// Hidden: a file would read by itself, in buffers of its own.
	out.size, err = io.CopyBuffer(io.MultiWriter(struct{ io.Writer }{f}, sum), r, buf)
	out.digest = digest.NewDigest(digest.SHA256, sum)
	if err = errors.Join(err, f.Close()); err != nil {
		return archived{}, invalidUnless(err)
	}
	return out, nil
}

// blob finds a blob of the archive.
func (a *archive) blob(d digest.Digest) (archived, error) {
	if d.Validate() == nil {
		if f, ok := a.files[path.Join("blobs", d.Algorithm().String(), d.Encoded())]; ok {
			return f, nil
		}
		if f, ok := a.docker[d]; ok {
			return f, nil
		}
	}
	return archived{}, fmt.Errorf("%w: archive has no blob %q", ErrInvalid, truncate(string(d)))
}

// document reads a small file within the service's memory budget.
func (s *Service) document(ctx context.Context, f archived, what string, read func(data []byte) error) error {
	if f.size > maxArchiveIndex {
		return fmt.Errorf("%w: %s has %d bytes, limit %d", ErrInvalid, what, f.size, maxArchiveIndex)
	}
	doc := &spool{dir: s.blobs.TempDir()}
	defer doc.close()
	in, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer in.Close()
	if _, err := io.Copy(doc, in); err != nil {
		return err
	}
	doc.desc.Size = f.size
	return s.decoded(ctx, doc, read)
}
