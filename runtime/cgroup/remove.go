package cgroup

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// Remove removes the group and the groups below it, waiting until ctx ends
// ([ErrBusy]) for exiting processes, but not for those that have ended and are
// not reaped ([ErrDefunct]). A parent created by this package is
// removed with its last group, except the default parent ([Node.Close]).
// Removing a missing group is not an error.
func (g *Group) Remove(ctx context.Context) error {
	// Nothing is tried: Linux 7.0 may wait for them in rmdir(2), where it cannot be
	// interrupted, and systemd waits for the end of what its list of processes has.
	if dir := g.unifiedDir(); dir != "" {
		if some, err := populatedV2(dir); err == nil && some && g.defunct(ctx) {
			return g.fail("remove", ErrDefunct)
		}
	}

	if g.node.driver == Systemd {
		return g.removeScope(ctx)
	}
	return g.removeDirs(ctx)
}

func (g *Group) removeDirs(ctx context.Context) error {
	var errs []error
	for _, dir := range g.dirs {
		if err := removeTree(ctx, dir, g.defunct); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("remove cgroup %s: %w", g.path, errors.Join(errs...))
	}
	g.node.removeParents(g.at.parentRel)
	return nil
}

// discard undoes Create. It does not wait: groups with processes existed before.
func (g *Group) discard() {
	for _, dir := range g.dirs {
		_ = unix.Rmdir(dir)
	}
	g.node.removeParents(g.at.parentRel)
}

// removeParents removes a parent and those above it while they are ours and
// empty. The default parent stays: recreating it for the next container would
// take as long as the container's own group.
func (n *Node) removeParents(rel string) {
	for removed := true; removed && rel != "/" && rel != n.parent; rel = path.Dir(rel) {
		removed = false
		for _, dir := range n.dirs(rel) {
			if ours(dir) && unix.Rmdir(dir) == nil {
				removed = true
			}
		}
	}
}
