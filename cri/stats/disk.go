package stats

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// batch is how many names of a folder are read at a time.
	batch = 256
	// maxDepth bounds the descriptors that a walk holds; deeper folders
	// count for nothing.
	maxDepth = 128
)

// diskUsage adds up what the files below dir occupy. The files belong to a
// container, which may change them meanwhile: no link is followed, no other
// file system entered, and no path longer than a name is ever looked up.
func diskUsage(ctx context.Context, dir string) (bytes, inodes uint64, err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	root := os.NewFile(uintptr(fd), dir)
	defer root.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	w := diskWalk{ctx: ctx, dev: st.Dev}
	w.add(&st)
	err = w.folder(root, 1)
	return w.bytes, w.inodes, err
}

type diskWalk struct {
	ctx           context.Context // of one walk, which ends with the call
	dev           uint64
	bytes, inodes uint64
	// linked are the files seen that have more than one name.
	linked map[uint64]bool
}

func (w *diskWalk) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if w.linked[st.Ino] {
			return
		}
		if w.linked == nil {
			w.linked = make(map[uint64]bool)
		}
		w.linked[st.Ino] = true
	}
	w.bytes += uint64(st.Blocks) * 512
	w.inodes++
}

func (w *diskWalk) folder(f *os.File, depth int) error {
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		names, err := f.Readdirnames(batch)
		if len(names) == 0 || err != nil {
			return nil // the end, or the folder has gone
		}
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != w.dev {
				continue
			}
			w.add(&st)
			if st.Mode&unix.S_IFMT == unix.S_IFDIR && depth < maxDepth {
				if err := w.enter(f, name, depth); err != nil {
					return err
				}
			}
		}
	}
}

func (w *diskWalk) enter(parent *os.File, name string, depth int) error {
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Dev != w.dev {
		return nil
	}
	return w.folder(f, depth+1)
}

// fileSystem is what statfs tells about the place of a layer.
type fileSystem struct {
	device                        string
	size, inodesTotal, inodesFree uint64
}

func (d *devices) fileSystem(dir string) (fileSystem, bool) {
	var sf unix.Statfs_t
	var st unix.Stat_t
	if dir == "" || unix.Statfs(dir, &sf) != nil || unix.Stat(dir, &st) != nil {
		return fileSystem{}, false
	}
	return fileSystem{
		device:      d.name(unix.Major(st.Dev), unix.Minor(st.Dev)),
		size:        sf.Blocks * uint64(sf.Bsize),
		inodesTotal: sf.Files,
		inodesFree:  sf.Ffree,
	}, true
}
