package pod

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/cgroup"
	"crisp/runtime/launch"
	"crisp/runtime/resctrl"
)

// checkClass refuses what a CDI device or a plugin requests of Intel RDT if it cannot
// be had.
func (m *Manager) checkClass(r *specs.LinuxIntelRdt, plugins []string) error {
	if r == nil {
		return nil
	}
	err := resctrl.Check(r)
	if err == nil {
		_, err = resctrl.Open(m.ResctrlDir)
	}
	switch {
	case err != nil && len(plugins) > 0:
		return fmt.Errorf("%w: requested by a CDI device or a plugin (%q)", err, plugins)
	case err != nil:
		return fmt.Errorf("%w: requested by a CDI device", err)
	}
	return nil
}

// makeClass makes a container's class of Intel RDT, if it has one.
func (m *Manager) makeClass(c *Container) error {
	if c.IntelRDT == nil {
		return nil
	}
	fs, err := resctrl.Open(m.ResctrlDir)
	if err != nil {
		return err
	}
	return fs.Create(c.ID, c.IntelRDT)
}

// removeClass is the undo of makeClass. Without the file system, as after a reboot,
// there is nothing to remove.
func (m *Manager) removeClass(c *Container) error {
	if c.IntelRDT == nil {
		return nil
	}
	fs, err := resctrl.Open(m.ResctrlDir)
	if err != nil {
		return nil
	}
	return fs.Remove(c.ID, c.IntelRDT)
}

// place is where a container's processes are started.
func (m *Manager) place(c *Container, group *cgroup.Group) (launch.Group, error) {
	if c.IntelRDT == nil {
		return group, nil
	}
	fs, err := resctrl.Open(m.ResctrlDir)
	if err != nil {
		return nil, err
	}
	return launch.Class{FS: fs, ID: c.ID, Spec: c.IntelRDT}.With(group), nil
}
