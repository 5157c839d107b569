package plan

import (
	"fmt"
	"math/bits"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/capability"
)

// capabilityName returns the name of a capability, or its number if this program
// is older than the capability.
func capabilityName(n int) string {
	if name := capability.Name(n); name != "" {
		return name
	}
	return fmt.Sprintf("capability %d", n)
}

// Warnings describes the settings of a spec that are ignored, as the
// runtime-spec requires: unknown capabilities, and those that cannot be in the
// ambient set.
func Warnings(s *specs.Spec) []string {
	if s.Process == nil || s.Process.Capabilities == nil {
		return nil
	}
	asked := s.Process.Capabilities
	var list []string
	all := slices.Concat(asked.Bounding, asked.Effective, asked.Permitted, asked.Inheritable, asked.Ambient)
	slices.Sort(all)

	_, unknown := capability.Parse(slices.Compact(all)...)
	for _, name := range unknown {
		list = append(list, fmt.Sprintf("capability %q is unknown and left out", name))
	}

	permitted, _ := capability.Parse(asked.Permitted...)
	inheritable, _ := capability.Parse(asked.Inheritable...)
	ambient, _ := capability.Parse(asked.Ambient...)
	for left := ambient &^ (permitted & inheritable); left != 0; left &= left - 1 {
		name := capabilityName(bits.TrailingZeros64(uint64(left)))
		list = append(list, name+" is left out of the ambient set: it is not both permitted and inheritable")
	}

	return list
}

type capSets struct{ bounding, effective, permitted, inheritable, ambient capability.Set }

// capSets returns the five requested sets, without capabilities that the
// machine cannot grant. In a user namespace all are available.
func (c *process) capSets() capSets {
	asked := c.p.Capabilities
	if asked == nil {
		asked = &specs.LinuxCapabilities{}
	}

	var s capSets
	for _, set := range []struct {
		names []string
		mask  *capability.Set
	}{
		{asked.Bounding, &s.bounding}, {asked.Effective, &s.effective}, {asked.Permitted, &s.permitted},
		{asked.Inheritable, &s.inheritable}, {asked.Ambient, &s.ambient},
	} {
		mask, _ := capability.Parse(set.names...) // see [Warnings]
		if c.o.Machine.Caps != 0 && !c.userns() {
			mask &= c.o.Machine.Caps
		}
		*set.mask = mask
	}

	s.ambient &= s.permitted & s.inheritable
	return s
}

func (b *builder) capset(s capSets) {
	header := words32(unix.LINUX_CAPABILITY_VERSION_3, 0)
	sets := words32(
		uint32(s.effective), uint32(s.permitted), uint32(s.inheritable),
		uint32(s.effective>>32), uint32(s.permitted>>32), uint32(s.inheritable>>32),
	)
	b.step("set capabilities", unix.SYS_CAPSET, data(header), data(sets))
}
