package stats

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

// diskUsage adds up what the files below dir occupy. They belong to a
// container, which may change them meanwhile.
func diskUsage(ctx context.Context, dir string) (rootpath.Usage, error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return rootpath.Usage{Partial: true}, err
	}
	defer f.Close()
	return rootpath.Measure(ctx, f)
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
