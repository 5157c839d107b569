package plan

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capNames has the capabilities by number.
var capNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

func capName(n int) string {
	if n < len(capNames) {
		return "CAP_" + capNames[n]
	}
	return fmt.Sprintf("capability %d", n)
}

// capMask returns a set of capabilities, and the unknown names.
func capMask(names []string) (mask uint64, unknown []string) {
	for _, name := range names {
		n := slices.Index(capNames[:], strings.TrimPrefix(name, "CAP_"))
		if n < 0 || !strings.HasPrefix(name, "CAP_") {
			unknown = append(unknown, name)
			continue
		}
		mask |= 1 << n
	}
	return mask, unknown
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

	_, unknown := capMask(slices.Compact(all))
	for _, name := range unknown {
		list = append(list, fmt.Sprintf("capability %q is unknown and left out", name))
	}

	permitted, _ := capMask(asked.Permitted)
	inheritable, _ := capMask(asked.Inheritable)
	ambient, _ := capMask(asked.Ambient)
	for left := ambient &^ (permitted & inheritable); left != 0; left &= left - 1 {
		name := capName(bits.TrailingZeros64(left))
		list = append(list, name+" is left out of the ambient set: it is not both permitted and inheritable")
	}

	return list
}

type capSets struct{ bounding, effective, permitted, inheritable, ambient uint64 }

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
		mask  *uint64
	}{
		{asked.Bounding, &s.bounding}, {asked.Effective, &s.effective}, {asked.Permitted, &s.permitted},
		{asked.Inheritable, &s.inheritable}, {asked.Ambient, &s.ambient},
	} {
		mask, _ := capMask(set.names) // see [Warnings]
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
