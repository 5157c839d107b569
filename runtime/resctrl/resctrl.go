// Package resctrl places containers in classes of Intel RDT and its relatives: shares
// of caches and of memory bandwidth, which the kernel's resctrl file system has as
// directories.
//
//	/sys/fs/resctrl/                        the default class
//	/sys/fs/resctrl/CLASS/                  schemata, tasks
//	/sys/fs/resctrl/CLASS/mon_groups/ID/    tasks of one container, to monitor it
//
// The class is named by the runtime-spec's closID. Without a name it is the
// container's own, made and removed with it. Everything that is made for a container
// follows from its ID and its spec, so that [FS.Remove] finds it after a crash.
package resctrl

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var (
	// ErrUnsupported is a node without the file system, or without a free class.
	ErrUnsupported = errors.New("this node lacks Intel RDT")
	// ErrInvalid is a request that no node can meet.
	ErrInvalid = errors.New("invalid request for Intel RDT")
	// ErrConflict is a class that differs from what is requested, and that others may
	// be using.
	ErrConflict = errors.New("class of Intel RDT differs")
)

// Root is where the file system is mounted on a node.
const Root = "/sys/fs/resctrl"

// defaultClass is the closID of the default class.
const defaultClass = "/"

// FS is a mounted file system. Its methods may be called concurrently for different
// containers.
type FS struct {
	root string
	// mkdir and rmdir are those of the kernel.
	mkdir, rmdir func(path string) error
}

// Open returns the file system at root, and [ErrUnsupported] if it is not mounted
// there.
func Open(root string) (*FS, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil || st.Type != unix.RDTGROUP_SUPER_MAGIC {
		return nil, fmt.Errorf("%w: the resctrl file system is not mounted at %s: the CPU has to support it, and the node has to mount it", ErrUnsupported, root)
	}
	return At(root), nil
}

// At returns the file system at root without a look at it.
func At(root string) *FS {
	return &FS{root: root, mkdir: func(path string) error { return os.Mkdir(path, 0o755) }, rmdir: unix.Rmdir}
}

// Check returns [ErrInvalid] for a request that has no meaning.
func Check(r *specs.LinuxIntelRdt) error {
	name := r.ClosID
	reserved := []string{".", "..", "info", "mon_groups", "mon_data"}
	if name != defaultClass && (slices.Contains(reserved, name) || len(name) > 255 || strings.ContainsAny(name, "/\n\x00")) {
		return fmt.Errorf("%w: the class %q is no name of a directory", ErrInvalid, name)
	}
	for _, line := range lines(r) {
		if _, err := parse(line); err != nil {
			return err
		}
	}
	return nil
}

// lines are the requested schemata, in the order in which they apply.
func lines(r *specs.LinuxIntelRdt) []string {
	var all []string
	for _, line := range []string{r.L3CacheSchema, r.MemBwSchema} {
		if line != "" {
			all = append(all, line)
		}
	}
	return append(all, r.Schemata...)
}

// class is the directory of a container's class.
func (f *FS) class(id string, r *specs.LinuxIntelRdt) string {
	switch r.ClosID {
	case "":
		return filepath.Join(f.root, id)
	case defaultClass:
		return f.root
	}
	return filepath.Join(f.root, r.ClosID)
}

// monitor is the directory of a container's monitoring group.
func (f *FS) monitor(id string, r *specs.LinuxIntelRdt) string {
	return filepath.Join(f.class(id, r), "mon_groups", id)
}

// Create makes what a container needs: its class, unless that exists, and its
// monitoring group. It may be called again. A class that exists, and that others may
// be using, is not changed. After an error [FS.Remove] removes what was made.
func (f *FS) Create(id string, r *specs.LinuxIntelRdt) error {
	if err := Check(r); err != nil {
		return err
	}
	dir, wanted := f.class(id, r), lines(r)
	if r.ClosID == "" || r.ClosID != defaultClass && len(wanted) > 0 {
		switch err := f.make(dir); {
		case err == nil:
			if err := write(filepath.Join(dir, "schemata"), wanted); err != nil {
				// Nobody has it yet.
				return errors.Join(fmt.Errorf("%w: class %s: %w", ErrInvalid, filepath.Base(dir), err), f.remove(dir))
			}
		case !errors.Is(err, fs.ErrExist):
			return err
		}
	}

	if err := f.compare(dir, wanted); err != nil {
		return err
	}
	if !r.EnableMonitoring {
		return nil
	}
	if err := f.make(f.monitor(id, r)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// make makes a class or a monitoring group, of which the CPU has few.
func (f *FS) make(dir string) error {
	err := f.mkdir(dir)
	switch {
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: the CPU has no class or monitor left for %s", ErrUnsupported, dir)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: it cannot monitor: make %s: %w", ErrUnsupported, dir, err)
	}
	return err
}

// compare returns an error unless a class exists and has the requested schemata.
func (f *FS) compare(dir string, wanted []string) error {
	data, err := os.ReadFile(filepath.Join(dir, "schemata"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: the node has no class %s, and the container requests no schemata for it", ErrUnsupported, filepath.Base(dir))
	}
	if err != nil {
		return err
	}

	has := map[string]schema{}
	for line := range strings.Lines(string(data)) {
		if s, err := parse(strings.TrimSpace(line)); err == nil {
			has[s.resource] = s
		}
	}
	for _, line := range last(wanted) {
		s, err := parse(line)
		if err != nil {
			return err
		}
		if !has[s.resource].covers(s) {
			return fmt.Errorf("%w: %s has %q, not %q", ErrConflict, filepath.Base(dir), strings.TrimSpace(string(data)), line)
		}
	}
	return nil
}

// last are the lines that later ones for the same resource do not replace.
func last(lines []string) []string {
	var out []string
	for _, line := range lines {
		resource, _, _ := strings.Cut(line, ":")
		out = slices.DeleteFunc(out, func(o string) bool { return strings.HasPrefix(o, resource+":") })
		out = append(out, line)
	}
	return out
}

// Tasks opens the files to which a process writes "0" to join what [FS.Create] has
// made. The caller closes them.
func (f *FS) Tasks(id string, r *specs.LinuxIntelRdt) ([]*os.File, error) {
	var files []*os.File
	for _, dir := range f.joined(id, r) {
		file, err := os.OpenFile(filepath.Join(dir, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			for _, other := range files {
				other.Close()
			}
			return nil, fmt.Errorf("join class of Intel RDT: %w", err)
		}
		files = append(files, file)
	}
	return files, nil
}

// joined are the directories of a container, in the order in which it joins them.
func (f *FS) joined(id string, r *specs.LinuxIntelRdt) []string {
	dirs := []string{f.class(id, r)}
	if r.EnableMonitoring {
		dirs = append(dirs, f.monitor(id, r))
	}
	return dirs
}

// Add moves a process into what [FS.Create] has made.
func (f *FS) Add(id string, r *specs.LinuxIntelRdt, pid int) error {
	for _, dir := range f.joined(id, r) {
		if err := write(filepath.Join(dir, "tasks"), []string{fmt.Sprint(pid)}); err != nil {
			return fmt.Errorf("join class of Intel RDT: %w", err)
		}
	}
	return nil
}

// Remove removes what was made for a container, as far as it exists. A class with a
// name stays: others may be using it.
func (f *FS) Remove(id string, r *specs.LinuxIntelRdt) error {
	if r.EnableMonitoring {
		if err := f.remove(f.monitor(id, r)); err != nil {
			return err
		}
	}
	if r.ClosID != "" {
		return nil
	}
	return f.remove(f.class(id, r))
}

func (f *FS) remove(dir string) error {
	if err := f.rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove class of Intel RDT %s: %w", dir, err)
	}
	return nil
}

// write writes lines to a file, one at a time as the kernel takes them. The kernel has
// nothing to truncate.
func write(path string, lines []string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, line := range lines {
		if _, err := io.WriteString(f, line+"\n"); err != nil {
			return fmt.Errorf("write %q: %w", line, err)
		}
	}
	return nil
}
