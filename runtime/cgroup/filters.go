package cgroup

import (
	"errors"
	"os"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"golang.org/x/sys/unix"
)

// maxFilters bounds the cached programs. Nearly all containers of a node have
// the same rules.
const maxFilters = 32

// filters caches loaded device filters of version 2 groups. The library would
// have the kernel verify and store the same program again for each container,
// 0.3 ms each time; attaching a loaded one takes a few microseconds, and a
// loaded program is immutable.
type filters struct {
	mu       sync.Mutex
	programs map[string]*ebpf.Program
}

// attach gives a new group its filter.
func (f *filters) attach(dir string, want *cgroups.Resources) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := ruleKey(want.Devices)
	fd, err := openRaw(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)

	if p := f.programs[key]; p != nil {
		err := link.RawAttachProgram(link.RawAttachProgramOptions{
			Target: fd, Program: p, Attach: ebpf.AttachCGroupDevice,
			Flags: unix.BPF_F_ALLOW_MULTI, // as the library does, so that it can replace the filter
		})
		if err != nil {
			return &os.PathError{Op: "attach device filter", Path: dir, Err: err}
		}
		return nil
	}

	if err := cgroups.DevicesSetV2(dir, want); err != nil {
		return err
	}
	f.keep(fd, key)
	return nil
}

// keep caches the program that the library has attached. If that fails, the
// next container loads its own.
func (f *filters) keep(fd int, key string) {
	found, err := link.QueryPrograms(link.QueryOptions{Target: fd, Attach: ebpf.AttachCGroupDevice})
	if err != nil || len(found.Programs) != 1 {
		return
	}

	p, err := ebpf.NewProgramFromID(found.Programs[0].ID)
	if err != nil {
		return
	}

	if len(f.programs) >= maxFilters {
		_ = f.drop()
	}
	if f.programs == nil {
		f.programs = make(map[string]*ebpf.Program)
	}
	f.programs[key] = p
}

// drop empties the cache. Groups keep their filters.
func (f *filters) drop() error {
	var errs []error
	for _, p := range f.programs {
		errs = append(errs, p.Close())
	}
	f.programs = nil
	return errors.Join(errs...)
}

func (f *filters) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.drop()
}

func ruleKey(rules []*devices.Rule) string {
	var b strings.Builder
	for _, r := range rules {
		if r.Allow {
			b.WriteByte('+')
		}
		b.WriteString(r.CgroupString())
		b.WriteByte('\n')
	}
	return b.String()
}
