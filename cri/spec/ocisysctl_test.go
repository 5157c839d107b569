package spec

import (
	"errors"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestCheckSysctls(t *testing.T) {
	own := func(kinds ...specs.LinuxNamespaceType) (list []specs.LinuxNamespace) {
		for _, k := range kinds {
			list = append(list, specs.LinuxNamespace{Type: k})
		}
		return list
	}
	for _, c := range []struct {
		name   string
		sysctl string
		in     []specs.LinuxNamespace
		good   bool
	}{
		{"the node's", "kernel.panic", own("network", "ipc", "uts", "user", "pid", "mount"), false},
		{"the node's, by slashes", "kernel/core_pattern", own("ipc", "uts"), false},
		{"the node's memory", "vm.overcommit_memory", own("ipc"), false},
		{"network", "net.ipv4.ip_forward", own("network"), true},
		{"the node's network", "net.ipv4.ip_forward", own("ipc"), false},
		{"the node's network, joined", "net.ipv4.ip_forward", []specs.LinuxNamespace{{Type: "network", Path: "/proc/self/ns/net"}}, false},
		{"IPC", "kernel.shmmax", own("ipc"), true},
		{"message queues", "fs.mqueue.msg_max", own("ipc"), true},
		{"the node's IPC", "kernel.sem", own("network"), false},
		{"host name", "kernel.hostname", own("uts"), true},
		{"the node's host name", "kernel.hostname", own("ipc"), false},
		{"user", "user.max_net_namespaces", own("user"), true},
		{"the node's users", "user.max_net_namespaces", own("network"), false},
		{"dots", "net.ipv4../../kernel/panic", own("network"), false},
		{"up", "net/../kernel/panic", own("network"), false},
	} {
		s := &specs.Spec{Linux: &specs.Linux{Namespaces: c.in, Sysctl: map[string]string{c.sysctl: "1"}}}
		if err := CheckSysctls(s); (err == nil) != c.good || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
