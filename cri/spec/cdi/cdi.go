// Package cdi adds devices of the Container Device Interface to a container's
// runtime-spec.
//
// CDI specs are files on the node, written by device drivers. They are read
// again for each container that requests such a device, so that a new device is
// found immediately. Either all devices of a container are added or none.
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

// Errors about devices that cannot be added.
var (
	// ErrUnknown means that no CDI spec describes a device of that name.
	ErrUnknown = errors.New("unknown CDI device")
	// ErrUnsupported means that a CDI spec requires something that crisp does not
	// support, such as a hook.
	ErrUnsupported = errors.New("CDI device with unsupported edits")
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

// Inject adds the named devices, from the CDI specs in the given directories,
// to a spec.
func Inject(dirs []string, s *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read CDI specs in %q: %w", dirs, err)
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

// unknown returns an error that lists the known devices and the broken files.
func unknown(cache *cdi.Cache, dirs []string, name string) error {
	err := fmt.Errorf("%w %q (%q have %q)", ErrUnknown, name, dirs, cache.ListDevices())
	broken := cache.GetErrors()
	for _, file := range slices.Sorted(maps.Keys(broken)) {
		err = errors.Join(err, fmt.Errorf("%s: %w", file, errors.Join(broken[file]...)))
	}
	return err
}

// check rejects edits that would silently have no effect.
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
