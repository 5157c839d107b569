package spec

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/capability"
)

// DefaultCapabilities returns the capabilities of a container that requests
// none: Docker's set, which images have come to rely on.
func DefaultCapabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

const all = "ALL"

// CapabilityName returns the canonical name of a capability, which may be given
// without CAP_ and in any case.
func CapabilityName(s string) (string, error) {
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "CAP_") {
		name = "CAP_" + name
	}
	if _, ok := capability.Number(name); !ok {
		return "", invalid("unknown capability %q", s)
	}
	return name, nil
}

// capabilityList is a list from the configuration, which may contain ALL.
type capabilityList struct {
	all   bool
	names []string
}

func parseCapabilities(in []string) (capabilityList, error) {
	var l capabilityList
	for _, s := range in {
		if strings.EqualFold(s, all) {
			l.all = true
			continue
		}
		name, err := CapabilityName(s)
		if err != nil {
			return l, err
		}
		l.names = append(l.names, name)
	}
	return l, nil
}

// available returns the capabilities that a process of this container can have:
// in a new user namespace all of them, whatever the daemon lacks.
func (b *builder) available() []string {
	if b.userns != nil {
		return b.Host.KnownCapabilities
	}
	return b.Host.Capabilities
}

// capabilities computes the five sets. "ALL" in a list applies first, so that
// "add ALL, drop X" and "drop ALL, add X" work as expected; a capability that
// is both added and dropped by name is dropped.
func (b *builder) capabilities() error {
	add, err := parseCapabilities(b.sc.GetCapabilities().GetAddCapabilities())
	if err != nil {
		return err
	}

	drop, err := parseCapabilities(b.sc.GetCapabilities().GetDropCapabilities())
	if err != nil {
		return err
	}

	ambient, err := parseCapabilities(b.sc.GetCapabilities().GetAddAmbientCapabilities())
	if err != nil {
		return err
	}

	set := b.Defaults.Capabilities
	if set == nil {
		set = DefaultCapabilities()
	}

	if add.all || ambient.all || b.privileged {
		set = b.available()
	}
	if drop.all && !b.privileged {
		set = nil
	}
	if ambient.all {
		ambient.names = b.available()
	}

	set = b.limit(slices.Concat(set, add.names, ambient.names))
	kept := b.limit(ambient.names)
	if !b.privileged {
		set, kept = without(set, drop.names), without(kept, drop.names)
	}

	// The kernel keeps a capability ambient only while it is inheritable, too.
	// Apart from those the inheritable set stays empty (CVE-2022-24769).
	b.out.Spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: set, Permitted: set, Effective: set, Inheritable: kept, Ambient: kept,
	}
	return nil
}

// limit returns those capabilities of a list that are available, sorted.
func (b *builder) limit(names []string) []string {
	out := []string{}
	for _, n := range slices.Compact(slices.Sorted(slices.Values(names))) {
		if slices.Contains(b.available(), n) {
			out = append(out, n)
		} else if w := "capability " + n + " is not available on this node"; !slices.Contains(b.out.Warnings, w) {
			b.warn(w)
		}
	}
	return out
}

func without(set, drop []string) []string {
	return slices.DeleteFunc(slices.Clone(set), func(n string) bool { return slices.Contains(drop, n) })
}
