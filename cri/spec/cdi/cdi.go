// Package cdi adds devices of the Container Device Interface to a container's
// runtime-spec.
//
// CDI specs are files on the node, written by device drivers. They are read
// again when one has changed, and before a device is reported as unknown, so
// that a new device is found immediately. A file that cannot be read affects
// only its own devices. Either all devices of a container are added or none.
package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"

	"crisp/runtime/hook"
)

var (
	// ErrUnknown means that no CDI spec describes a device of that name.
	ErrUnknown = errors.New("unknown CDI device")
	// ErrConflict means that devices cannot be added to the same container.
	ErrConflict = errors.New("conflicting CDI devices")
)

// Names returns the fully qualified names of the devices that a container
// requests, in the CRI's field and in annotations, each once.
func Names(cfg *runtimeapi.ContainerConfig) ([]string, error) {
	var out []string
	add := func(name string) error {
		if !parser.IsQualifiedName(name) {
			return fmt.Errorf("%w: %q is not of the form vendor/class=name", ErrUnknown, name)
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
		return nil
	}

	for _, d := range cfg.GetCDIDevices() {
		if err := add(d.GetName()); err != nil {
			return nil, err
		}
	}

	for _, key := range slices.Sorted(maps.Keys(cfg.GetAnnotations())) {
		if !strings.HasPrefix(key, cdi.AnnotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(cfg.GetAnnotations()[key], ",") {
			if err := add(name); err != nil {
				return nil, fmt.Errorf("annotation %s: %w", key, err)
			}
		}
	}

	return out, nil
}

// Registry has the devices that CDI specs describe.
type Registry struct {
	dirs []string

	mu   sync.Mutex
	read *catalogue // guarded by mu; nil before the first use
	seen string     // guarded by mu; the state of the directories when they were read
}

// New returns the registry of the specs in the given directories, of which the
// last has priority.
func New(dirs []string) *Registry { return &Registry{dirs: dirs} }

// Inject adds the named devices to a spec, all or none. The edits of a device,
// and once those of each CDI spec, are applied in the order of the names. It returns
// the sources of the spec's hooks.
func (r *Registry) Inject(s *specs.Spec, names []string) (hook.Sources, error) {
	if len(names) == 0 {
		return nil, nil
	}
	devices, err := r.find(names)
	if err != nil {
		return nil, err
	}

	list := editsOf(devices)
	if err := agree(list); err != nil {
		return nil, fmt.Errorf("add CDI devices %q: %w", names, err)
	}
	all := &cdi.ContainerEdits{}
	for _, e := range list {
		all.Append(&e.ContainerEdits)
	}
	for i, m := range all.Mounts {
		all.Mounts[i] = complete(m)
	}
	if err := all.Apply(s); err != nil {
		return nil, fmt.Errorf("add CDI devices %q: %w", names, err)
	}
	return sources(list, s), nil
}

// find returns the named devices. Specs are read again if a file has changed, and
// before a name is refused.
func (r *Registry) find(names []string) ([]*cdi.Device, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	missing := ""
	for range 2 {
		seen := state(r.dirs)
		if r.read == nil || seen != r.seen || missing != "" {
			r.read, r.seen = scan(r.dirs), seen
		}

		var devices []*cdi.Device
		missing = ""
		for _, name := range names {
			d := r.read.devices[name]
			if d == nil {
				missing = name
				break
			}
			devices = append(devices, d)
		}
		if missing == "" {
			return devices, nil
		}
	}
	return nil, r.read.unknown(r.dirs, missing)
}

// state identifies the content of directories by what changes with it.
func state(dirs []string) string {
	var b strings.Builder
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		fmt.Fprintln(&b, dir, err)
		for _, e := range entries {
			// A link's target may change without the link.
			info, err := os.Stat(filepath.Join(dir, e.Name()))
			if err != nil {
				fmt.Fprintln(&b, e.Name(), err)
				continue
			}
			fmt.Fprintln(&b, e.Name(), info.Size(), info.ModTime().UnixNano(), inode(info))
		}
	}
	return b.String()
}

func inode(info fs.FileInfo) any {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return [2]int64{int64(st.Ino), st.Ctim.Nano()}
	}
	return nil
}

// complete returns a mount of a host path without a type as a bind mount, so that the
// library maps its IDs, too. It is a copy: the library appends to the options, and those of
// the catalogue are for all containers.
func complete(m *cdispecs.Mount) *cdispecs.Mount {
	c := *m
	c.Options = slices.Clone(m.Options)
	if c.Type == "" && !slices.Contains(c.Options, "bind") && !slices.Contains(c.Options, "rbind") {
		c.Options = append(c.Options, "rbind")
	}
	return &c
}

// edits are those of a device, or of all devices in a file.
type edits struct {
	cdi.ContainerEdits
	file string
}

// editsOf are the edits of devices in their order, each once.
func editsOf(devices []*cdi.Device) []edits {
	var list []edits
	common := map[*cdi.Spec]bool{}
	for _, d := range devices {
		s := d.GetSpec()
		if !common[s] {
			common[s] = true
			list = append(list, edits{cdi.ContainerEdits{ContainerEdits: &s.ContainerEdits}, s.GetPath()})
		}
		list = append(list, edits{cdi.ContainerEdits{ContainerEdits: &d.ContainerEdits}, s.GetPath()})
	}
	return list
}

// agree refuses edits of which one would silently replace another.
func agree(list []edits) error {
	names := map[string]string{}
	var rdt *cdispecs.IntelRdt
	for _, e := range list {
		for _, n := range e.NetDevices {
			if other, ok := names[n.HostInterfaceName]; ok && other != n.Name {
				return fmt.Errorf("%w: network device %s is to be called both %s and %s", ErrConflict, n.HostInterfaceName, other, n.Name)
			}
			names[n.HostInterfaceName] = n.Name
		}
		if rdt != nil && e.IntelRdt != nil && !reflect.DeepEqual(rdt, e.IntelRdt) {
			return fmt.Errorf("%w: two of them are for different classes of Intel RDT", ErrConflict)
		}
		if e.IntelRdt != nil {
			rdt = e.IntelRdt
		}
	}
	return nil
}

// sources are the sources of a spec's hooks, of which edits have added some.
func sources(list []edits, s *specs.Spec) hook.Sources {
	var all hook.Sources
	for _, h := range hook.List(s.Hooks, nil) {
		for _, e := range list {
			if slices.ContainsFunc(e.Hooks, func(o *cdispecs.Hook) bool { return same(o, h) }) {
				h.Source = "CDI specification " + e.file
				break
			}
		}
		all = hook.Append(all, h)
	}
	return all
}

// same reports whether a hook of a CDI spec is one of a spec.
func same(o *cdispecs.Hook, h hook.Hook) bool {
	return o.HookName == string(h.Kind) && o.Path == h.Path && slices.Equal(o.Args, h.Args) && slices.Equal(o.Env, h.Env)
}
