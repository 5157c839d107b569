package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry holds the files that a process needs to enter a group in every hierarchy.
type Entry struct {
	// Unified is the group's directory in the unified hierarchy, for
	// CLONE_INTO_CGROUP; nil where the machine has none.
	Unified *os.File
	// Tasks are the tasks files of the version 1 hierarchies, to write "0" to.
	Tasks []*os.File
}

// Close closes the files.
func (e *Entry) Close() {
	for _, f := range e.Files() {
		f.Close()
	}
}

// Files returns the entry's files by the names of plan inputs: "cgroup",
// "cgroup/0" and so on.
func (e *Entry) Files() map[string]*os.File {
	files := make(map[string]*os.File, len(e.Tasks)+1)
	if e.Unified != nil {
		files["cgroup"] = e.Unified
	}
	for i, f := range e.Tasks {
		files["cgroup/"+strconv.Itoa(i)] = f
	}
	return files
}

// Entry opens the files to enter the group. The caller closes them.
func (g *Group) Entry() (*Entry, error) { return g.entry(g.unifiedDir()) }

// EntryOf is Entry for a process that joins the process pid of the container.
// In the unified hierarchy an init like systemd moves all processes into child
// groups and enables controllers for these; from then on the group itself
// accepts no process, so the new one enters the group of pid.
func (g *Group) EntryOf(pid int) (*Entry, error) {
	dir := g.unifiedDir()
	if dir == "" {
		return g.entry(dir)
	}
	if rel, err := unifiedPath(pid); err == nil && strings.HasPrefix(rel, g.at.rel+"/") {
		dir = filepath.Join(g.node.root, rel)
	}
	return g.entry(dir)
}

// entry opens a directory of the unified hierarchy, if any, and the group's own
// in the others.
func (g *Group) entry(unified string) (*Entry, error) {
	e := &Entry{Tasks: make([]*os.File, 0, len(g.dirs))}
	for i, dir := range g.dirs {
		h := &g.in[i]
		if h.unified() {
			continue
		}

		f, err := g.openIn(h, dir, "/tasks", unix.O_WRONLY)
		if err != nil {
			e.Close()
			return nil, g.fail("enter", err)
		}
		e.Tasks = append(e.Tasks, f)
	}

	if unified == "" {
		return e, nil
	}
	var h *hierarchy // a group created by the container is not recreated

	if unified == g.unifiedDir() {
		h = &hierarchy{dir: g.node.root}
	}
	f, err := g.openIn(h, unified, "", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		e.Close()
		return nil, g.fail("enter", err)
	}

	e.Unified = f
	return e, nil
}

// openIn opens a file of the group's directory in a hierarchy. A group created
// by an earlier version, or before the hierarchy, is missing there: it is
// created now, so that new processes join all hierarchies.
func (g *Group) openIn(h *hierarchy, dir, name string, flags int) (*os.File, error) {
	fd, err := openRaw(dir+name, flags)
	if errors.Is(err, fs.ErrNotExist) && h != nil && !h.limited() && exists(g.processDir()) {
		if made, _ := g.node.makeDir(dir, *h); made && !exists(g.processDir()) {
			_ = unix.Rmdir(dir) // the group was being removed
		}
		fd, err = openRaw(dir+name, flags)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir+name), nil
}

// unifiedPath is the path of a process's version 2 group.
func unifiedPath(pid int) (string, error) {
	var r reader
	data, err := r.read("/proc/"+strconv.Itoa(pid), "cgroup")
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(data) {
		if rel, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte{'\n'}), []byte("0::")); ok {
			return filepath.Clean(string(rel)), nil
		}
	}
	return "", unix.ENOENT
}

// Admit moves a process of the node's into the group, in every hierarchy: what it uses from now
// on counts as the group's.
func (g *Group) Admit(pid int) error {
	if err := g.join(pid); err != nil {
		return fmt.Errorf("move process %d into cgroup %s: %w", pid, g.path, err)
	}
	return nil
}

// join moves a process that systemd has placed into the group to it in the
// other hierarchies, too: systemd manages only some.
func (g *Group) join(pid int) error {
	var r reader
	data, err := r.read("/proc/"+strconv.Itoa(pid), "cgroup")
	if err != nil {
		return err
	}

	memberships, err := parseMemberships(data)
	if err != nil {
		return err
	}

	for i, dir := range g.dirs {
		h := &g.in[i]
		if memberOf(memberships, h) == g.at.rel {
			continue
		}

		if _, err := g.node.makeDir(dir, *h); err != nil {
			return err
		}
		if err := writeFile(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return err
		}
	}

	return nil
}

// memberOf is the path of a process's group in a hierarchy.
func memberOf(list []membership, h *hierarchy) string {
	for _, m := range list {
		if h.unified() && len(m.controllers) == 0 || !h.unified() && slices.Contains(m.controllers, h.controllers[0]) {
			return m.path
		}
	}
	return ""
}
