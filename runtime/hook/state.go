package hook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/durable"
	"crisp/runtime/rootpath"
	"crisp/runtime/sealed"
)

// Container is what hooks are told of their container.
type Container struct {
	// ID is the container's.
	ID string
	// Spec is its runtime-spec.
	Spec *specs.Spec
	// Bundle is the absolute path of its bundle directory, see
	// [Container.WriteBundle] and [View].
	Bundle string
}

// rootName is the directory of a bundle at which the container's root file
// system is mounted.
const rootName = "rootfs"

// configName is the file of a bundle with the container's runtime-spec.
const configName = "config.json"

// status is the container's status in the OCI runtime-spec when hooks of a kind
// run.
func (k Kind) status() specs.ContainerState {
	switch k {
	case StartContainer:
		return specs.StateCreated
	case Poststart:
		return specs.StateRunning
	case Poststop:
		return specs.StateStopped
	}
	return specs.StateCreating
}

// pid is the process ID of the container as hooks of a kind see it: those in
// the container's namespaces are in its PID namespace if the container has one
// of its own, of which its process is the first.
func (c Container) pid(k Kind, pid int) int {
	if k == Poststop {
		return 0
	}
	for _, ns := range c.Spec.Linux.Namespaces {
		if k.InContainer() && ns.Type == specs.PIDNamespace && ns.Path == "" {
			return 1
		}
	}
	return pid
}

// State returns a sealed file with what a hook of a kind reads from its
// standard input; pid is the container's process.
func (c Container) State(k Kind, pid int) (*os.File, error) {
	data, err := json.Marshal(specs.State{
		Version: specs.Version, ID: c.ID, Status: k.status(), Pid: c.pid(k, pid), Bundle: c.Bundle, Annotations: c.Spec.Annotations,
	})
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	f, err := sealed.New("state", func(f *os.File) error {
		if _, err := f.Write(append(data, '\n')); err != nil {
			return err
		}
		_, err := f.Seek(0, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make state: %w", err)
	}
	return f, nil
}

// root is the path of the container's root file system where hooks of a kind
// run. In the runtime's namespaces it leads through the container's process.
func (c Container) root(k Kind, pid int) string {
	at := filepath.Join(c.Bundle, rootName)
	switch k {
	case CreateContainer:
		return at
	case StartContainer:
		return "/"
	case Poststart:
		return fmt.Sprintf("/proc/%d/root", pid)
	case Poststop:
		return at // which is empty by then
	}
	return fmt.Sprintf("/proc/%d/root%s", pid, at)
}

// config is the runtime-spec as hooks of a kind find it.
func (c Container) config(k Kind, pid int) ([]byte, error) {
	s := *c.Spec
	root := *s.Root
	root.Path = c.root(k, pid)
	s.Root = &root
	data, err := json.Marshal(&s)
	if err != nil {
		return nil, fmt.Errorf("encode config.json: %w", err)
	}
	return data, nil
}

// WriteBundle writes the container's bundle in the runtime's namespaces, for
// hooks of a kind: a directory with config.json and an empty directory rootfs.
func (c Container) WriteBundle(k Kind, pid int) error {
	data, err := c.config(k, pid)
	if err == nil {
		err = os.MkdirAll(filepath.Join(c.Bundle, rootName), 0o700)
	}
	if err == nil {
		err = durable.ReplaceFile(filepath.Join(c.Bundle, configName), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write bundle for hooks: %w", err)
	}
	return nil
}

// RemoveBundle removes what [Container.WriteBundle] has written.
// Hooks may have added to it.
func (c Container) RemoveBundle(ctx context.Context) error {
	parent, err := os.Open(filepath.Dir(c.Bundle))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove bundle of hooks: %w", err)
	}
	defer parent.Close()

	if err := rootpath.RemoveAll(ctx, parent, filepath.Base(c.Bundle)); err != nil {
		return fmt.Errorf("remove bundle of hooks: %w", err)
	}
	return nil
}

// View is where createContainer hooks see the bundle: in a small file system of
// its own, which is mounted in the container's mount namespace in place of the
// directory of all bundles. It hides that directory, and can be read by the
// root of a user namespace.
type View struct {
	// At is the absolute path without links at which the file system is mounted,
	// Root the path below it of the directory for the container's root.
	At, Root string
}

// Fill fills the file system for a view of the bundle; dir is an existing
// directory above the bundle, where it is to be mounted.
func (c Container) Fill(fs *os.File, dir string) (*View, error) {
	at, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("make bundle for hooks: %w", err)
	}
	below, err := filepath.Rel(dir, c.Bundle)
	if err != nil {
		return nil, fmt.Errorf("make bundle for hooks: %w", err)
	}
	if len(c.Spec.Linux.UIDMappings) > 0 {
		if at, below, err = reachable(at, below); err != nil {
			return nil, fmt.Errorf("make bundle for hooks: %w", err)
		}
	}
	data, err := c.config(CreateContainer, 0)
	if err != nil {
		return nil, err
	}

	if err := fill(fs, below, data); err != nil {
		return nil, fmt.Errorf("fill bundle for hooks: %w", err)
	}
	return &View{At: at, Root: filepath.Join(below, rootName)}, nil
}

// reachable moves the mount up to the first directory that the root of a user
// namespace cannot enter, which hides nothing from it.
func reachable(at, below string) (string, string, error) {
	for i, r := range at {
		if r != '/' || i == 0 {
			continue
		}
		info, err := os.Stat(at[:i])
		if err != nil {
			return "", "", err
		}
		if info.Mode().Perm()&0o001 == 0 {
			return at[:i], filepath.Join(at[i+1:], below), nil
		}
	}
	return at, below, nil
}

// fill creates the bundle's directories and its file in the file system.
func fill(f *os.File, below string, config []byte) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.MkdirAll(filepath.Join(below, rootName), 0o755); err != nil {
		return err
	}
	return root.WriteFile(filepath.Join(below, configName), config, 0o644)
}
