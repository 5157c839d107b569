package layer

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

// inherit gives the directory name of the stage owner, mode and time of the
// directory that it would otherwise hide the attributes of: overlayfs shows
// those of the topmost layer.
func (st *Stage) inherit(name string) error {
	trees, err := st.store.Trees(st.rec.Parent)
	if err != nil {
		return err
	}
	for _, tree := range trees {
		if found, err := st.inheritFrom(st.store.dir, tree, name); found || err != nil {
			return err
		}
	}
	return nil
}

// inheritFrom looks for name in one tree. Something else of that name ends
// the search too: the directory is a new one then.
func (st *Stage) inheritFrom(dir *os.File, tree, name string) (found bool, err error) {
	below, err := openTree(dir, tree, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return true, nil
	case err != nil:
		return false, err
	}
	defer below.Close()
	return true, st.copyAttributes(name, below)
}

// openTree opens the directory name of a layer without following links: each
// would mean something else in the stack of layers than in this one alone.
func openTree(layers *os.File, tree, name string) (*os.File, error) {
	cur, err := rootpath.Open(layers, tree, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil || name == "." {
		return cur, err
	}
	for _, part := range strings.Split(filepath.Clean(name), "/") {
		next, err := openDir(cur, part)
		cur.Close()
		if err != nil {
			return nil, err
		}
		cur = next
	}
	return cur, nil
}

func (st *Stage) copyAttributes(name string, from *os.File) error {
	var attr unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &attr); err != nil {
		return err
	}
	to, err := rootpath.Open(st.root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := unix.Fchown(int(to.Fd()), int(attr.Uid), int(attr.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(int(to.Fd()), attr.Mode&0o7777); err != nil {
		return err
	}
	return setTime(to, time.Unix(attr.Mtim.Unix()))
}
