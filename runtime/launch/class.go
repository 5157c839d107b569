package launch

import (
	"context"
	"errors"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/cgroup"
	"crisp/runtime/resctrl"
)

// Class is a container's class of Intel RDT, which [resctrl.FS.Create] has made.
type Class struct {
	FS *resctrl.FS
	// ID and Spec are those that it was made with.
	ID   string
	Spec *specs.LinuxIntelRdt
}

// With returns a group whose processes are in the class, too.
func (c Class) With(g Group) Group { return classed{g, c} }

// classed is a group with a class. A process joins a class as it joins a group of
// version 1: by writing to a file.
type classed struct {
	Group
	class Class
}

func (g classed) Entry() (*cgroup.Entry, error) { return g.add(g.Group.Entry()) }

func (g classed) EntryOf(pid int) (*cgroup.Entry, error) { return g.add(g.Group.EntryOf(pid)) }

func (g classed) add(e *cgroup.Entry, err error) (*cgroup.Entry, error) {
	if err != nil {
		return nil, err
	}
	files, err := g.class.FS.Tasks(g.class.ID, g.class.Spec)
	if err != nil {
		e.Close()
		return nil, err
	}
	e.Tasks = append(e.Tasks, files...)
	return e, nil
}

func (g classed) Attach(ctx context.Context, pid int) error {
	return errors.Join(g.class.FS.Add(g.class.ID, g.class.Spec, pid), g.Group.Attach(ctx, pid))
}
