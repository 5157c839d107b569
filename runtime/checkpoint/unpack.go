package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

const (
	// maxName bounds a name in an archive, and maxHeaders all headers of an entry, in
	// bytes: the reader holds them.
	maxName    = 1 << 10
	maxHeaders = 64 << 10
	// imageSuffix is that of the files that CRIU reads.
	imageSuffix   = ".img"
	inventoryFile = "inventory" + imageSuffix
	// freeShare is the part of a disk that stays free, one twentieth.
	freeShare = 20
)

// known are the files of an archive that are unpacked, and how long they may be, in
// bytes. CRIU's images come on top. Nothing else is written anywhere, such as logs,
// of engines that put more into their archives.
func known(name string) (limit int64, ok bool) {
	switch name {
	case configFile, statusFile:
		return 1 << 20, true
	case specFile:
		return 32 << 20, true
	case manifestFile:
		return maxManifest, true
	case deletedFile, deletedRaw:
		return 2 * maxNames, true
	case diffFile, sharedFile:
		return 1 << 62, true
	case ImagesDir + "/" + streamsFile: // it is none of CRIU's
		return maxStreams, true
	}
	return 0, false
}

// Terms are what an archive has to comply with.
type Terms struct {
	// Bytes bounds the archive and all that is unpacked of it, in bytes.
	Bytes int64
	// From says whose checkpoints are accepted.
	From Policy
	// Digest is what a pod's checkpoint says of the archive's manifest, see [Pod], "" if it
	// is part of none.
	Digest string
}

// Unpacked is a checkpoint in a directory that only root can enter. What is in its
// fields and files is the word of whoever made it.
type Unpacked struct {
	Config Config
	// Spec is the OCI runtime-spec that the container had: for comparison only.
	Spec   *specs.Spec
	Status Status
	// Signer is who made it, the zero value if it is not signed.
	Signer PublicKey

	stage Stage
}

// Unpack unpacks an archive into a new directory of this name in parent. The archive
// is hostile: whatever is in it, only regular files of the known names are written,
// below that directory, and within the terms. Archives of containerd and CRI-O are
// accepted as well; they are not signed.
//
// The errors are [ErrInvalid], [ErrTooLarge] also for a disk without space, and
// [ErrUntrusted]. When ctx ends, Unpack does, with the cause. Then nothing is left.
func Unpack(ctx context.Context, archive io.Reader, parent, name string, terms Terms) (_ *Unpacked, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("unpack checkpoint: %w", err)
		}
	}()
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	u := &Unpacked{stage: Stage{parent, name}}
	if err := os.Mkdir(u.stage.dir(), 0o700); err != nil {
		return nil, err
	}

	defer func() {
		if err != nil {
			err = errors.Join(err, u.Remove(context.WithoutCancel(ctx)))
		}
	}()
	w, err := newUnpacking(ctx, archive, u.stage, terms)
	if err != nil {
		return nil, err
	}
	defer w.close()
	if err := w.archive(); err != nil {
		return nil, err
	}
	if u.Signer, err = w.signer(); err != nil {
		return nil, err
	}
	return u, u.read()
}

// Images is the directory of CRIU's images.
func (u *Unpacked) Images() string { return u.stage.Images() }

// Remove removes the directory.
func (u *Unpacked) Remove(ctx context.Context) error { return u.stage.Remove(ctx) }

// OpenDiff opens the archive of changed files. The error is [fs.ErrNotExist] if there
// is none.
func (u *Unpacked) OpenDiff() (*os.File, error) { return u.open(diffFile) }

func (u *Unpacked) open(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(u.stage.dir(), name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
}

// read reads the small files.
func (u *Unpacked) read() error {
	for _, f := range []struct {
		name     string
		to       any
		required bool
	}{{configFile, &u.Config, true}, {specFile, &u.Spec, true}, {statusFile, &u.Status, false}} {
		text, err := os.ReadFile(filepath.Join(u.stage.dir(), f.name))
		if errors.Is(err, fs.ErrNotExist) && !f.required {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: it has no %s", ErrInvalid, f.name)
		}
		if err != nil {
			return err
		}
		if err := decode(text, f.to); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrInvalid, f.name, err)
		}
	}
	if u.Spec == nil || u.Spec.Process == nil || u.Spec.Linux == nil {
		return fmt.Errorf("%w: %s is of no container of Linux", ErrInvalid, specFile)
	}

	if _, err := os.Lstat(filepath.Join(u.Images(), inventoryFile)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it has no %s/%s", ErrInvalid, ImagesDir, inventoryFile)
	} else if err != nil {
		return err
	}
	return nil
}

// unpacking is one Unpack.
type unpacking struct {
	ctx   context.Context // of one call, which ends with it
	from  *source
	terms Terms

	dir, images *os.File
	// seen are the names so far, and found what they are but directories.
	seen   map[string]bool
	found  []file
	buffer []byte
}

func newUnpacking(ctx context.Context, archive io.Reader, s Stage, terms Terms) (*unpacking, error) {
	w := &unpacking{ctx: ctx, terms: terms, seen: map[string]bool{}, buffer: make([]byte, 128<<10)}
	w.from = &source{ctx: ctx, r: archive, rest: terms.Bytes}

	if err := os.Mkdir(s.Images(), 0o700); err != nil {
		return nil, err
	}
	var err error
	if w.dir, err = os.Open(s.dir()); err != nil {
		return nil, err
	}
	if w.images, err = os.Open(s.Images()); err != nil {
		return nil, errors.Join(err, w.dir.Close())
	}
	return w, nil
}

func (w *unpacking) close() {
	w.dir.Close()
	w.images.Close()
}

// archive unpacks all entries, and reads the archive to its end.
func (w *unpacking) archive() error {
	r := tar.NewReader(w.from)
	for {
		w.from.header = maxHeaders
		h, err := r.Next()
		w.from.header = 0
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return archiveError(err)
		}
		if err := w.entry(h, r); err != nil {
			return fmt.Errorf("%.100q: %w", h.Name, archiveError(err))
		}
	}

	if _, err := io.CopyBuffer(io.Discard, w.from, w.buffer); err != nil {
		return archiveError(err)
	}
	return nil
}

// archiveError marks errors of the format.
func archiveError(err error) error {
	for _, broken := range []error{tar.ErrHeader, tar.ErrFieldTooLong, io.ErrUnexpectedEOF} {
		if errors.Is(err, broken) {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return err
}

// entry unpacks one entry, or reads over it.
func (w *unpacking) entry(h *tar.Header, body io.Reader) error {
	name, err := entryName(h)
	if err != nil {
		return err
	}
	if name == "." {
		return nil
	}
	if w.seen[name] {
		return fmt.Errorf("%w: it is there twice", ErrInvalid)
	}
	if len(w.seen) == maxFiles {
		return fmt.Errorf("%w: more than %d files", ErrTooLarge, maxFiles)
	}
	w.seen[name] = true
	if h.Typeflag == tar.TypeDir {
		if path.Dir(name) == ImagesDir {
			return fmt.Errorf("%w: CRIU's images are in no directories", ErrInvalid)
		}
		return nil
	}

	m := newMeter()
	to, err := w.place(name, h.Size)
	if err != nil {
		return err
	}
	if to == nil {
		_, err = io.CopyBuffer(m, body, w.buffer)
	} else {
		_, err = io.CopyBuffer(io.MultiWriter(to, m), body, w.buffer)
		err = errors.Join(err, to.Close())
	}
	if err != nil {
		return err
	}
	if name != manifestFile {
		w.found = append(w.found, m.file(name))
	}
	return nil
}

// entryName returns the clean name of an entry that may be in an archive.
func entryName(h *tar.Header) (string, error) {
	switch {
	case h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir:
		return "", fmt.Errorf("%w: it is of type %q, neither a regular file nor a directory", ErrInvalid, h.Typeflag)
	case isSparse(h):
		return "", fmt.Errorf("%w: it is sparse", ErrInvalid)
	case len(h.Name) > maxName || strings.ContainsRune(h.Name, 0):
		return "", fmt.Errorf("%w: its name has more than %d bytes, or a zero", ErrInvalid, maxName)
	case strings.HasPrefix(h.Name, "/") || slices.Contains(strings.Split(h.Name, "/"), ".."):
		return "", fmt.Errorf("%w: its name leads elsewhere", ErrInvalid)
	}
	// The name is a part of the header, which it would keep in memory.
	return strings.Clone(path.Clean(h.Name)), nil
}

// isSparse reports whether a file is longer than what the archive has of it.
func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// place makes the file for an entry, nil if it is not unpacked.
func (w *unpacking) place(name string, size int64) (*os.File, error) {
	if size < 0 || size > w.from.rest {
		return nil, fmt.Errorf("%w: the archive may have %d bytes", ErrTooLarge, w.terms.Bytes)
	}

	dir, base := w.dir, path.Base(name)
	among := path.Dir(name) == ImagesDir
	switch limit, ok := known(name); {
	case ok && size > limit:
		return nil, fmt.Errorf("%w: it has %d bytes, and may have %d", ErrTooLarge, size, limit)
	case ok:
	case among && !strings.HasSuffix(base, imageSuffix):
		return nil, nil
	case among && !isImageName(base):
		return nil, fmt.Errorf("%w: no image of CRIU has such a name", ErrInvalid)
	case among:
		dir = w.images
	case strings.HasPrefix(name, ImagesDir+"/"):
		return nil, fmt.Errorf("%w: CRIU's images are in no directories", ErrInvalid)
	default:
		return nil, nil
	}

	if err := HasSpace(w.dir, size); err != nil {
		return nil, err
	}
	return rootpath.CreateFile(dir, base, 0o600)
}

// isImageName reports whether a name is like those that CRIU gives.
func isImageName(name string) bool {
	for _, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return len(name) <= unix.NAME_MAX && name[0] != '.' && name[0] != '-'
}

// HasSpace checks that as many bytes fit onto the disk of an open file. The error is
// [ErrTooLarge].
func HasSpace(on *os.File, size int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(on.Fd()), &st); err != nil {
		return err
	}
	left := int64(st.Bavail) - int64(st.Blocks)/freeShare
	if left < 0 || size/st.Bsize >= left {
		return fmt.Errorf("%w: less than 1/%d of the disk would be left", ErrTooLarge, freeShare)
	}
	return nil
}

// signer says who has signed what was found, if that is according to the terms.
func (w *unpacking) signer() (PublicKey, error) {
	var text []byte
	if w.seen[manifestFile] {
		var err error
		if text, err = rootpath.ReadFile(w.dir, manifestFile, maxManifest); err != nil {
			return PublicKey{}, err
		}
	}
	if w.terms.Digest != "" && digestOf(text) != w.terms.Digest {
		return PublicKey{}, fmt.Errorf("%w: it is not the archive that the pod's checkpoint names, or was changed", ErrInvalid)
	}

	if text == nil {
		return PublicKey{}, w.terms.From.Check(PublicKey{})
	}
	m, signer, err := verify(text, kindContainer)
	if err != nil {
		return PublicKey{}, err
	}
	if err := m.match(w.found); err != nil {
		return PublicKey{}, err
	}
	return signer, w.terms.From.Check(signer)
}

// source reads an archive within its bounds.
type source struct {
	ctx  context.Context // io.Reader has no room for it
	r    io.Reader
	rest int64
	// header is how much more the headers of an entry may have, 0 in its body.
	header int64
}

func (s *source) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}

	// One more than is left, to see an excess.
	n, err := s.r.Read(p[:min(int64(len(p)), s.rest+1)])
	if s.rest -= int64(n); s.rest < 0 {
		return 0, fmt.Errorf("%w: it has more bytes than it may have", ErrTooLarge)
	}
	if s.header > 0 {
		if s.header -= int64(n); s.header <= 0 {
			return 0, fmt.Errorf("%w: headers of an entry have more than %d bytes", ErrTooLarge, maxHeaders)
		}
	}
	return n, err
}
