package hostile

import (
	"fmt"
	"strings"
	"testing"

	"crisp/test/testkit/pods"
)

const (
	// sysAdmin is why CAP_SYS_ADMIN outside of a user namespace is equivalent
	// to root on the node, as documented in docs/security.md.
	sysAdmin = "outside of a user namespace the kernel asks for CAP_SYS_ADMIN alone"
	purpose  = "that is what it is for"
	// own is the reason for operations on resources of the container's own user
	// namespace.
	own = "mounts and namespaces are the container's own, and locked below"
)

// reasons say why an attempt may succeed, by attempt.
type reasons map[string]string

// escapes are the attempts that succeed outside of a user namespace, by the
// capability that it takes.
var escapes = map[string]reasons{
	"SYS_ADMIN": {
		"kernel settings remounted":       sysAdmin,
		"kernel settings in a new procfs": sysAdmin,
		"kernel settings in a new sysfs":  sysAdmin,
		"masks removed":                   sysAdmin,
		"new user namespace":              "the filter allows it for processes that may mount anyway",
		"fsopen":                          sysAdmin,
		"open_tree":                       sysAdmin,
		"mount_setattr":                   sysAdmin,
		"bpf":                             sysAdmin,
		"perf_event_open":                 sysAdmin,
	},
	// /etc/hosts and the like are files of the node's disk.
	"DAC_READ_SEARCH": {"file handles of a mounted file's disk": "the kernel asks for nothing else, and such files are mounted into every pod"},
	"SYS_MODULE":      {"init_module": purpose, "finit_module": purpose},
	"SYS_TIME":        {"clock": purpose},
	"SYSLOG":          {"kernel log": purpose},
	"BPF":             {"bpf": purpose},
	"PERFMON":         {"perf_event_open": purpose},
	"SYS_PACCT":       {"acct": purpose},
}

// escapesInUserNamespace are those in one: none reaches the node's resources.
var escapesInUserNamespace = map[string]reasons{
	"SYS_ADMIN": {"masks removed": own, "new user namespace": own, "fsopen": own, "open_tree": own, "mount_setattr": own},
}

// TestEscapes has containers of each kind try every known escape.
func TestEscapes(t *testing.T) {
	n := newNode(t)
	all := []string{
		"", "usual", "SYS_PTRACE", "SYS_ADMIN", "NET_ADMIN", "DAC_READ_SEARCH", "DAC_OVERRIDE", "SYS_CHROOT", "MKNOD",
		"SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME", "SYSLOG", "BPF", "PERFMON", "SYS_RESOURCE", "SYS_PACCT", "MAC_ADMIN", "ALL",
	}
	for _, user := range []bool{false, true} {
		for _, capability := range all {
			name := fmt.Sprintf("capability %q user namespace %t", capability, user)
			t.Run(name, func(t *testing.T) { n.tries(t, capability, user) })
		}
	}
}

// tries runs the attempts in a container, and compares the result with what is
// allowed.
func (n *node) tries(t *testing.T, capability string, user bool) {
	t.Helper()
	var in []pods.PodChange
	table := escapes
	if user {
		in, table = append(in, pods.UserNamespace(300000)), escapesInUserNamespace
	}

	p := pods.Run(t, n.Lab, "tries", in...)
	c := p.Start(t, "tries", attacker, n.armed(), capable(capability), pods.Command("/resident", "try"))
	c.Wait(t)
	log := c.Logged(t)
	if !strings.HasSuffix(log, "DONE\n") {
		t.Errorf("it did not try everything:\n%s", log)
	}

	for _, line := range found(log, "ESCAPED") {
		attempt, _, _ := strings.Cut(line, ":")
		if capability != "ALL" && table[capability][attempt] == "" || capability == "ALL" && !someCapability(table, attempt) {
			t.Errorf("it got out: %s", line)
		}
	}

	for attempt := range table[capability] {
		if !strings.Contains(log, "ESCAPED "+attempt+":") {
			t.Logf("not here, though it may be: %s", attempt)
		}
	}

	if got := len(found(log, "TRIED")) + len(found(log, "ESCAPED")); got < 25 {
		t.Errorf("it tried %d ways, want all", got)
	}
}

// someCapability reports whether an attempt succeeds with one capability.
func someCapability(table map[string]reasons, attempt string) bool {
	for _, ways := range table {
		if ways[attempt] != "" {
			return true
		}
	}
	return false
}
