package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"crisp/runtime/durable"
)

// Settle makes a snapshot of a filled stage: what [Unpack] would leave of its archive,
// without one being written and read. It becomes the directory to, which must not exist, on
// the same file system, and is on the disk when Settle returns. The stage is empty then.
func (s Stage) Settle(ctx context.Context, to string) error {
	if err := s.settle(ctx); err != nil {
		return fmt.Errorf("settle a checkpoint: %w", err)
	}
	if err := os.Rename(s.dir(), to); err != nil {
		return fmt.Errorf("settle a checkpoint: %w", err)
	}
	return nil
}

func (s Stage) settle(ctx context.Context) error {
	err := os.Rename(filepath.Join(s.Images(), streamsFile), filepath.Join(s.dir(), streamsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	// All at once, as the disk can take them: there are dozens, most of them small.
	var files errgroup.Group
	files.SetLimit(syncers)
	dirs := []string{s.Images(), s.dir()}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return errors.Join(err, files.Wait())
		}
		for _, e := range entries {
			if !e.IsDir() {
				files.Go(func() error { return settleFile(ctx, filepath.Join(dir, e.Name()), dir == s.Images()) })
			}
		}
	}
	if err := files.Wait(); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := durable.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// syncers is how many files are put on the disk at the same time.
const syncers = 16

// settleFile puts a file on the disk, or removes one that a restore does not read.
func settleFile(ctx context.Context, path string, image bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !keepsFile(filepath.Base(path), image) {
		return os.Remove(path)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// keepsFile reports whether a snapshot has a file of a stage.
func keepsFile(name string, image bool) bool {
	if image {
		return strings.HasSuffix(name, imageSuffix)
	}
	_, ok := known(name)
	return ok || name == streamsFile
}

// Snapshot is the checkpoint of a container that a node has settled in a directory which
// nobody but root can enter or change. It is never written to again.
type Snapshot struct{ dir string }

// OpenSnapshot opens the snapshot in a directory.
func OpenSnapshot(dir string) Snapshot { return Snapshot{dir} }

// Read returns it as an unpacked checkpoint, which must not be given away.
func (s Snapshot) Read() (*Unpacked, error) {
	u := &Unpacked{stage: Stage{filepath.Dir(s.dir), filepath.Base(s.dir)}}
	if err := u.read(); err != nil {
		return nil, fmt.Errorf("read snapshot %s: %w", s.dir, err)
	}
	return u, nil
}

// Clone makes an unpacked checkpoint of a snapshot, in a new directory of this name in
// parent, on the same file system. They have the files in common, so it takes no time and
// no space: whoever changes one has to replace it, as [criu.SetFilter] does. The error is
// [fs.ErrNotExist] if the snapshot was removed meanwhile. After an error nothing is left.
func (s Snapshot) Clone(ctx context.Context, parent, name string) (_ *Unpacked, err error) {
	to, err := NewStage(parent, name)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("clone snapshot %s: %w", s.dir, err), to.Remove(context.WithoutCancel(ctx)))
		}
	}()
	if err != nil {
		return nil, err
	}

	err = s.each(func(name string) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return os.Link(filepath.Join(s.dir, name), filepath.Join(to.dir(), name))
	})
	if err != nil {
		return nil, err
	}
	u := &Unpacked{stage: to}
	return u, u.read()
}

// Size is how much the snapshot takes of the disk, in bytes.
func (s Snapshot) Size() (bytes int64, err error) {
	err = s.each(func(name string) error {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(s.dir, name), &st)
		bytes += st.Blocks * sectorSize
		return err
	})
	return bytes, err
}

// sectorSize is the unit of stat's blocks, in bytes.
const sectorSize = 512

// each calls do with the name of each file.
func (s Snapshot) each(do func(name string) error) error {
	for _, dir := range []string{"", ImagesDir} {
		entries, err := os.ReadDir(filepath.Join(s.dir, dir))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.Type().IsRegular() {
				continue
			}
			if err := do(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
