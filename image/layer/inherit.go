package layer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

// inherit copies owner, mode and time of directories in the layers below to the
// implied directories of the stage: overlayfs shows the attributes of the topmost
// layer, so an implied directory would hide them. The layers below are mounted as
// a container would see them and visited in one walk, however many they are.
func (st *Stage) inherit(ctx context.Context) error {
	trees, err := st.store.Trees(st.rec.Parent)
	if err != nil {
		return err
	}

	slices.SortFunc(st.implied, comparePaths)
	var below *os.File
	if len(st.implied) == 1 && st.implied[0] == "." { // the common case needs no mount
		below, err = rootpath.Open(st.store.dir, trees[0], unix.O_RDONLY|unix.O_DIRECTORY)
	} else {
		below, err = st.store.Overlay(trees).Mount(ctx)
	}
	if err != nil {
		return err
	}

	defer below.Close()

	w := &descent{root: below}
	defer w.close(0)
	for _, name := range st.implied {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		from, err := w.open(name)
		if isGone(err) {
			continue // a new directory
		}
		if err == nil {
			err = st.copyAttributes(name, from)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", shorten(name), err)
		}
	}

	return nil
}

// comparePaths orders paths like a depth-first walk: a directory comes before its
// contents, and these before its siblings.
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		return cmp.Compare(walkOrder(a[i]), walkOrder(b[i]))
	}
	return cmp.Compare(len(a), len(b))
}

func walkOrder(c byte) int {
	if c == '/' {
		return -1
	}
	return int(c)
}

// descent opens directories by path in the order of a walk, each relative to the
// previous one. Links are not followed: what they point to in a container is only
// known there.
type descent struct {
	root  *os.File
	names []string
	dirs  []*os.File
}

// open opens a directory, which the descent closes.
func (d *descent) open(name string) (*os.File, error) {
	if name == "." {
		d.close(0)
		return d.root, nil
	}

	parts := strings.Split(name, "/")
	same := 0
	for same < min(len(parts), len(d.names)) && parts[same] == d.names[same] {
		same++
	}
	d.close(same)

	for _, part := range parts[same:] {
		cur := d.root
		if n := len(d.dirs); n > 0 {
			cur = d.dirs[n-1]
		}

		next, err := openDir(cur, part)
		if err != nil {
			return nil, err
		}
		d.names, d.dirs = append(d.names, part), append(d.dirs, next)
	}

	return d.dirs[len(d.dirs)-1], nil
}

// close closes the directories from the given depth on.
func (d *descent) close(depth int) {
	for _, f := range d.dirs[depth:] {
		f.Close()
	}
	d.names, d.dirs = d.names[:depth], d.dirs[:depth]
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

	err = errors.Join(
		unix.Fchown(int(to.Fd()), int(attr.Uid), int(attr.Gid)),
		unix.Fchmod(int(to.Fd()), attr.Mode&0o7777),
		setTime(to, time.Unix(attr.Mtim.Unix())),
	)
	return errors.Join(err, to.Close())
}
