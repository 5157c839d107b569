package host

import (
	"slices"
	"strings"
)

// capNames has each capability at the index that is its number.
var capNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
	"CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
	"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
	"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

// CapSet is a set of capabilities as the kernel has them: bit n for number n.
type CapSet uint64

// CapNumber returns the number of a capability, "CAP_SYS_ADMIN".
func CapNumber(name string) (n int, ok bool) {
	n = slices.Index(capNames[:], name)
	return n, n >= 0
}

// CapName returns the name of a capability, or "" if it has none here.
func CapName(n int) string {
	if n < 0 || n >= len(capNames) {
		return ""
	}
	return capNames[n]
}

// Caps returns the set of the capabilities named, and the names that are no
// capability.
func Caps(names ...string) (set CapSet, unknown []string) {
	for _, name := range names {
		n, ok := CapNumber(name)
		if !ok {
			unknown = append(unknown, name)
			continue
		}
		set |= 1 << n
	}
	return set, unknown
}

// Has reports whether the capability named is in the set.
func (s CapSet) Has(name string) bool {
	n, ok := CapNumber(name)
	return ok && s&(1<<n) != 0
}

// Names returns the capabilities of the set by number. Those that have no name
// here, being newer than this program, are left out.
func (s CapSet) Names() []string {
	names := []string{}
	for n, name := range capNames {
		if s&(1<<n) != 0 {
			names = append(names, name)
		}
	}
	return names
}

func (s CapSet) String() string { return strings.Join(s.Names(), ",") }
