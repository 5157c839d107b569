package plan

import (
	"fmt"
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

func capMask(names []string) (uint64, error) {
	var mask uint64
	for _, name := range names {
		n := slices.Index(capNames[:], strings.TrimPrefix(name, "CAP_"))
		if n < 0 {
			return 0, fmt.Errorf("%w: capability %q", ErrSpec, name)
		}
		mask |= 1 << n
	}
	return mask, nil
}

type capSets struct{ bounding, effective, permitted, inheritable, ambient uint64 }

// capSets are the five sets asked for, without those that the machine cannot
// give. In a user namespace every capability is there.
func (c *process) capSets() (capSets, error) {
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
		mask, err := capMask(set.names)
		if err != nil {
			return s, err
		}
		if c.o.Machine.Caps != 0 && !c.userns() {
			mask &= c.o.Machine.Caps
		}
		*set.mask = mask
	}
	return s, nil
}

func (b *builder) capset(s capSets) {
	header := words32(unix.LINUX_CAPABILITY_VERSION_3, 0)
	sets := words32(
		uint32(s.effective), uint32(s.permitted), uint32(s.inheritable),
		uint32(s.effective>>32), uint32(s.permitted>>32), uint32(s.inheritable>>32),
	)
	b.step("set capabilities", unix.SYS_CAPSET, data(header), data(sets))
}
