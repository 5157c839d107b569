// Package folder imports the archives of images that are put into a directory, for
// nodes without a registry.
//
// An archive is imported when it is there, unchanged, for two looks, and again when it
// changes. What was imported is remembered over a restart, in a file that is only a
// hint: an archive is imported again unless all its images are still there. That an
// archive is removed removes no image.
package folder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crisp/image"
	"crisp/runtime/durable"
)

const (
	// lookTime is how often the directory is looked at, retryTime how soon an archive
	// is tried again that could not be imported, though nothing is wrong with it.
	lookTime, retryTime = 5 * time.Second, time.Minute
	// maxArchives bounds how many archives are looked at, maxMemory the length of what
	// is remembered, in bytes.
	maxArchives = 10_000
	maxMemory   = 16 << 20
	stateMode   = 0o600
)

// ErrUnsafe means that others than root could put archives into the directory, or
// change one in it.
var ErrUnsafe = errors.New("archives are not root's alone")

// Importer imports archives; [image.Service] is one.
type Importer interface {
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) ([]image.Imported, error)
	Get(ref string) (image.Image, error)
}

// Folder is a directory of archives.
type Folder struct {
	dir, state string
	images     Importer
	seen       map[string]stamp  // archives of the last look, by name
	known      map[string]result // those that were imported or refused, by name
	said       string            // the last error in the log
}

// stamp is equal for the same file with the same content.
type stamp struct {
	Inode uint64 `json:"inode"`
	Size  int64  `json:"size"`
	// Modified and Changed are in nanoseconds since the epoch.
	Modified int64 `json:"modified"`
	Changed  int64 `json:"changed"`
}

// result is what became of an archive.
type result struct {
	Stamp  stamp            `json:"stamp"`
	Images []image.Imported `json:"images"`
	// refused means that something is wrong with it; again is when it is to be tried
	// again, zero for never.
	refused bool
	again   time.Time
}

// New returns the folder of a directory, which need not exist, with a file to remember
// what was imported.
func New(dir, state string, images Importer) *Folder {
	f := &Folder{dir: dir, state: state, images: images, known: map[string]result{}}
	if err := f.load(); err != nil {
		klog.InfoS("Archives of images are imported again", "directory", dir, "reason", err)
		f.known = map[string]result{}
	}
	return f
}

// load reads what was imported.
func (f *Folder) load() error {
	in, err := os.Open(f.state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	if err := json.NewDecoder(io.LimitReader(in, maxMemory)).Decode(&f.known); err != nil {
		return err
	}
	if f.known == nil {
		return errors.New("the file has no list")
	}
	return nil
}

// Watch imports archives until ctx ends.
func (f *Folder) Watch(ctx context.Context) {
	for {
		if err := f.look(ctx, time.Now()); err != nil && ctx.Err() == nil {
			if text := err.Error(); text != f.said {
				klog.ErrorS(err, "Could not import archives of images", "directory", f.dir)
				f.said = text
			}
		}
		select {
		case <-time.After(lookTime):
		case <-ctx.Done():
			return
		}
	}
}

// look imports what is new in the directory.
func (f *Folder) look(ctx context.Context, now time.Time) error {
	dir, err := open(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	f.said = ""

	names, err := dir.Readdirnames(maxArchives)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read directory of archives: %w", err)
	}
	slices.Sort(names)
	seen := map[string]stamp{}
	for _, name := range names {
		if !isArchive(name) {
			continue
		}
		at, ok := stampOf(dir, name)
		if !ok {
			continue
		}
		seen[name] = at
		if f.seen[name] == at && !f.settled(name, at, now) {
			f.take(ctx, dir, name, at, now)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}

	f.seen = seen
	forgotten := len(f.known)
	maps.DeleteFunc(f.known, func(name string, _ result) bool { _, there := seen[name]; return !there })
	if len(f.known) < forgotten {
		return f.save()
	}
	return nil
}

// open opens the directory. Only root may have put files into it: whoever can chooses
// what runs under the names of other images.
func open(path string) (*os.File, error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory of archives: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("open directory of archives: %w", err), dir.Close())
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return nil, errors.Join(fmt.Errorf("%w: %s belongs to user %d and has mode %04o: chown root and chmod 0755", ErrUnsafe, path, st.Uid, st.Mode&0o7777), dir.Close())
	}
	return dir, nil
}

// isArchive reports whether a file name is one of an archive that is complete: hidden
// files are for those who write them in place.
func isArchive(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	return slices.ContainsFunc([]string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"}, func(end string) bool { return strings.HasSuffix(name, end) })
}

// stampOf is the stamp of a regular file.
func stampOf(dir *os.File, name string) (stamp, bool) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return stamp{}, false
	}
	return stampFrom(&st), true
}

func stampFrom(st *unix.Stat_t) stamp {
	return stamp{Inode: st.Ino, Size: st.Size, Modified: st.Mtim.Nano(), Changed: st.Ctim.Nano()}
}

// settled reports whether an archive needs nothing: images of its names are there,
// perhaps newer ones from a registry, or it was refused.
func (f *Folder) settled(name string, at stamp, now time.Time) bool {
	known, ok := f.known[name]
	if !ok || known.Stamp != at {
		return false
	}
	if !known.again.IsZero() {
		return now.Before(known.again)
	}
	return !slices.ContainsFunc(known.Images, func(im image.Imported) bool {
		_, err := f.images.Get(im.Name)
		return err != nil
	})
}

// take imports an archive, and remembers what became of it.
func (f *Folder) take(ctx context.Context, dir *os.File, name string, at stamp, now time.Time) {
	list, err := f.importFile(ctx, dir, name, at)
	if ctx.Err() != nil {
		return
	}
	out := result{Stamp: at, Images: list}
	switch {
	case err == nil:
		klog.InfoS("Imported images", "archive", name, "images", len(list))
	case errors.Is(err, image.ErrInvalid), errors.Is(err, image.ErrUnsupported), errors.Is(err, image.ErrInvalidReference), errors.Is(err, ErrUnsafe):
		out.refused = true
		klog.ErrorS(err, "Could not import an archive of images, it is ignored until it changes", "archive", name)
	default:
		out.again = now.Add(retryTime)
		klog.ErrorS(err, "Could not import an archive of images, it is tried again", "archive", name, "in", retryTime)
	}

	f.known[name] = out
	if err := f.save(); err != nil {
		klog.ErrorS(err, "Could not remember which archives of images were imported", "file", f.state)
	}
}

// importFile imports the file that has a stamp.
func (f *Folder) importFile(ctx context.Context, dir *os.File, name string, at stamp) ([]image.Imported, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()

	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	if stampFrom(&st) != at {
		return nil, errors.New("open archive: it has changed meanwhile")
	}
	// One that was moved here is still its former owner's.
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return nil, fmt.Errorf("open archive: %w: it belongs to user %d and has mode %04o: chown root and chmod 0644", ErrUnsafe, st.Uid, st.Mode&0o7777)
	}
	return f.images.Import(ctx, file, image.ImportOptions{Pin: true})
}

// save writes what was imported. What failed is tried again by the next daemon.
func (f *Folder) save() error {
	kept := maps.Clone(f.known)
	maps.DeleteFunc(kept, func(_ string, r result) bool { return r.refused || !r.again.IsZero() })
	data, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	return durable.ReplaceFile(f.state, data, stateMode)
}
