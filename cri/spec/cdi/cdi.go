// Package cdi adds devices described in the Container Device Interface to a
// container's runtime-spec.
//
// The descriptions are files on the node, written by device drivers; they are
// read anew for each container that asks for such a device, so that one which
// has just appeared is found. Either all devices of a container are added or
// none.
package cdi

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// Errors of devices that cannot be added.
var (
	// ErrUnknown means that no description has a device of that name.
	ErrUnknown = errors.New("unknown CDI device")
	// ErrUnsupported means that a description asks for something that crisp
	// does not do, such as a hook.
	ErrUnsupported = errors.New("CDI device with unsupported edits")
)

// Names returns the fully qualified names of the devices that a container
// asks for, by the field of the CRI and by annotation, each once.
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

// Inject adds the named devices, described in the given directories, to a spec.
func Inject(dirs []string, s *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read CDI descriptions in %q: %w", dirs, err)
	}

	for _, name := range names {
		if cache.GetDevice(name) == nil {
			return unknown(cache, dirs, name)
		}
	}

	if _, err := cache.InjectDevices(s, names...); err != nil {
		return fmt.Errorf("add CDI devices %q: %w", names, err)
	}
	return check(s)
}

// unknown explains which devices there are and which files are broken.
func unknown(cache *cdi.Cache, dirs []string, name string) error {
	err := fmt.Errorf("%w %q (in %q there are %q)", ErrUnknown, name, dirs, cache.ListDevices())
	broken := cache.GetErrors()
	for _, file := range slices.Sorted(maps.Keys(broken)) {
		err = errors.Join(err, fmt.Errorf("%s: %w", file, errors.Join(broken[file]...)))
	}
	return err
}

// check refuses edits that would silently have no effect.
func check(s *specs.Spec) error {
	switch {
	case s.Hooks != nil:
		return fmt.Errorf("%w: hooks", ErrUnsupported)
	case s.Linux.IntelRdt != nil:
		return fmt.Errorf("%w: Intel RDT", ErrUnsupported)
	case len(s.Linux.NetDevices) > 0:
		return fmt.Errorf("%w: network devices", ErrUnsupported)
	}
	return nil
}
