package spec

import (
	"fmt"
	"strings"

	"github.com/moby/sys/mountinfo"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// propagation returns the mount option for a mount's propagation, after
// checking that the source can propagate at all.
func (b *builder) propagation(m *runtimeapi.Mount, source string) (string, error) {
	if m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return "rprivate", nil
	}
	table, err := b.Node.Mounts()
	if err != nil {
		return "", fmt.Errorf("read the mount table: %w", err)
	}

	if err := CheckPropagation(table, source, m.GetPropagation()); err != nil {
		return "", err
	}
	if m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		return "rshared", nil
	}
	return "rslave", nil
}

// CheckPropagation returns an error if the mount that contains source, a path
// without symbolic links, does not take part in the requested propagation.
func CheckPropagation(table []*mountinfo.Info, source string, p runtimeapi.MountPropagation) error {
	if p == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return nil
	}
	mount := mountOf(table, source)
	if mount == nil {
		return invalid("host path %q is not on any known mount", source)
	}

	var shared, slave bool
	for field := range strings.FieldsSeq(mount.Optional) {
		shared = shared || strings.HasPrefix(field, "shared:")
		slave = slave || strings.HasPrefix(field, "master:")
	}

	switch {
	case p == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL && !shared:
		return invalid("host path %q is on mount %s, which is not shared", source, mount.Mountpoint)
	case p == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER && !shared && !slave:
		return invalid("host path %q is on mount %s, which is neither shared nor a slave", source, mount.Mountpoint)
	}

	return nil
}

// mountOf returns the mount that contains a path: the deepest one, and of
// several on top of each other the last.
func mountOf(table []*mountinfo.Info, source string) *mountinfo.Info {
	var found *mountinfo.Info
	for _, m := range table {
		if within(source, m.Mountpoint) && (found == nil || len(m.Mountpoint) >= len(found.Mountpoint)) {
			found = m
		}
	}
	return found
}

// within reports whether a clean path is dir or below it.
func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}
