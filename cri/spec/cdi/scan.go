package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"tags.cncf.io/container-device-interface/pkg/cdi"

	"crisp/runtime/rootpath"
)

// maxFile bounds a CDI spec, in bytes. The ones of nodes with many partitioned
// cards have some hundred kilobytes.
const maxFile = 4 << 20

// catalogue is what the files of some directories describe.
type catalogue struct {
	devices map[string]*cdi.Device
	// broken are the files and directories that cannot be used, or only in part.
	broken map[string][]error
}

// scan reads all CDI specs. The library could do that, too, but it would wait for a
// FIFO that somebody has put there, read files of any size, and ignore all that
// follows a directory which cannot be read.
func scan(dirs []string) *catalogue {
	c := &catalogue{devices: map[string]*cdi.Device{}, broken: map[string][]error{}}
	for _, dir := range dirs {
		maps.Copy(c.devices, c.scanDir(dir))
	}
	return c
}

// scanDir returns the devices of one directory. One that two files describe is
// nobody's.
func (c *catalogue) scanDir(dir string) map[string]*cdi.Device {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.note(dir, err)
	}

	devices, conflicts := map[string]*cdi.Device{}, map[string]bool{}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		if ext := filepath.Ext(file); e.IsDir() || ext != ".json" && ext != ".yaml" {
			continue
		}
		spec, err := load(file)
		if err != nil {
			c.note(file, err)
			continue
		}

		for i := range spec.Devices {
			d := spec.GetDevice(spec.Devices[i].Name)
			name := d.GetQualifiedName()
			if other := devices[name]; other != nil {
				conflicts[name] = true
				c.note(file, fmt.Errorf("%w: %s also describes %q", ErrConflict, other.GetSpec().GetPath(), name))
			}
			devices[name] = d
		}
	}

	maps.DeleteFunc(devices, func(name string, _ *cdi.Device) bool { return conflicts[name] })
	return devices
}

func (c *catalogue) note(path string, err error) { c.broken[path] = append(c.broken[path], err) }

// load reads a CDI spec.
func load(file string) (*cdi.Spec, error) {
	f, err := rootpath.OpenNodeFile(file, maxFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return cdi.ReadSpec(file, 0) // as it opens the file again, it may be another, which only root can do
}

// unknown returns an error that lists the known devices and the broken files.
func (c *catalogue) unknown(dirs []string, name string) error {
	err := fmt.Errorf("%w %q (%q have %q)", ErrUnknown, name, dirs, slices.Sorted(maps.Keys(c.devices)))
	for _, file := range slices.Sorted(maps.Keys(c.broken)) {
		err = errors.Join(err, fmt.Errorf("%s: %w", file, errors.Join(c.broken[file]...)))
	}
	return err
}
