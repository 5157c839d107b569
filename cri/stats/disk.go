package stats

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

// diskUsage returns the disk usage of the files below dir. They belong to a
// container, which may change them concurrently.
func diskUsage(ctx context.Context, dir string) (rootpath.Usage, error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return rootpath.Usage{Partial: true}, err
	}
	defer f.Close()
	return rootpath.Measure(ctx, f)
}

// fileSystem holds statfs's results for the file system of layers.
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
