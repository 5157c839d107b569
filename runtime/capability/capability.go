// Package capability has the names and numbers of the kernel's capabilities,
// once for all packages.
package capability

import (
	"slices"
	"strings"
)

// names has the capabilities, indexed by number.
var names = [...]string{
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

// Set is a set of capabilities as in the kernel: bit n for number n.
type Set uint64

// Number returns the number of a capability, "CAP_SYS_ADMIN".
func Number(name string) (n int, ok bool) {
	n = slices.Index(names[:], name)
	return n, n >= 0
}

// All returns the names of all capabilities up to Linux 6.18, by number.
func All() []string { return slices.Clone(names[:]) }

// Name returns the name of a capability, "" if unknown.
func Name(n int) string {
	if n < 0 || n >= len(names) {
		return ""
	}
	return names[n]
}

// Parse returns the set of the capabilities given by name, and the unknown
// names.
func Parse(list ...string) (set Set, unknown []string) {
	for _, name := range list {
		n, ok := Number(name)
		if !ok {
			unknown = append(unknown, name)
			continue
		}
		set |= 1 << n
	}
	return set, unknown
}

// Has reports whether the capability named is in the set.
func (s Set) Has(name string) bool {
	n, ok := Number(name)
	return ok && s&(1<<n) != 0
}

// Names returns the capabilities of the set by number. Those that have no name
// here, being newer than this program, are left out.
func (s Set) Names() []string {
	list := []string{}
	for n, name := range names {
		if s&(1<<n) != 0 {
			list = append(list, name)
		}
	}
	return list
}

func (s Set) String() string { return strings.Join(s.Names(), ",") }
