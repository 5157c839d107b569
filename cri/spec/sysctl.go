package spec

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxSysctl bounds a value: the kernel accepts no longer write to a file of
// /proc/sys.
const maxSysctl = 4095

// podSysctls returns the sysctls of a pod in their dotted form, without those of single
// interfaces, see [NetworkSysctls]. Only those that belong to a namespace of the pod's own
// are allowed.
func podSysctls(cfg *runtimeapi.PodSandboxConfig, userns *UserNamespace) (map[string]string, error) {
	out := map[string]string{}
	ownNet := NamespaceMode(cfg, Network) != runtimeapi.NamespaceMode_NODE
	if ownNet {
		// Pods may listen on any port and ping without privileges: the network
		// namespace is theirs alone.
		lastGroup := uint32(1<<31 - 1)
		if userns != nil {
			lastGroup = userns.Size - 1
		}
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		out["net.ipv4.ping_group_range"] = fmt.Sprintf("0 %d", lastGroup)
	}

	seen := map[string]bool{}
	for name, value := range cfg.GetLinux().GetSysctls() {
		// A value that was read from a file ends with a newline.
		value = strings.TrimRight(value, "\n")
		p, err := sysctlPath(name)
		if err != nil {
			return nil, err
		}

		if err := checkSysctl(p, cfg, userns); err != nil {
			return nil, err
		}
		if err := checkSysctlValue(name, value); err != nil {
			return nil, err
		}
		if seen[p] {
			return nil, invalid("sysctl %q is given twice", name)
		}

		seen[p] = true
		if !ofInterface(p) {
			out[swapSeparators(p)] = value
		}
	}

	return out, nil
}

// NetworkSysctls lists the sysctls that a pod requests of its network, as paths below
// /proc/sys and their values, those of all interfaces first. Plugins change some for the
// interfaces that they make, and others are there only when the interfaces are, so they
// are set once the pod is attached.
func NetworkSysctls(cfg *runtimeapi.PodSandboxConfig) (list [][2]string, err error) {
	for name, value := range cfg.GetLinux().GetSysctls() {
		p, err := sysctlPath(name)
		if err != nil {
			return nil, err
		}
		if namespaceOf(p) == specs.NetworkNamespace {
			list = append(list, [2]string{p, strings.TrimRight(value, "\n")})
		}
	}

	slices.SortFunc(list, func(a, b [2]string) int {
		if x, y := ofInterface(a[0]), ofInterface(b[0]); x != y {
			if x {
				return 1
			}
			return -1
		}
		return strings.Compare(a[0], b[0])
	})
	return list, nil
}

// ofInterface reports whether a sysctl is one of a single interface, which plugins make.
func ofInterface(p string) bool {
	parts := strings.Split(p, "/")
	switch {
	case len(parts) == 5 && slices.Contains([]string{"net/ipv4/conf", "net/ipv6/conf", "net/ipv4/neigh", "net/ipv6/neigh"}, strings.Join(parts[:3], "/")):
		return !slices.Contains([]string{"all", "default", "lo"}, parts[3])
	case len(parts) == 5 && strings.HasPrefix(p, "net/mpls/conf/"):
		return parts[3] != "lo"
	}
	return false
}

// sysctlPath turns the name of a sysctl into a path. Its parts are separated by
// "." or "/", whichever occurs first; the other one then stands for a dot
// inside a part, as in net.ipv4.conf.eth0/100.rp_filter.
func sysctlPath(name string) (string, error) {
	p := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		p = swapSeparators(name)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsFunc(part, notInSysctl) {
			return "", invalid("name of sysctl %q", name)
		}
	}
	return p, nil
}

func checkSysctlValue(name, value string) error {
	if len(value) > maxSysctl || strings.ContainsAny(value, "\x00\n\r") {
		return invalid("value of sysctl %q", name)
	}
	return nil
}

func swapSeparators(s string) string {
	return strings.NewReplacer(".", "/", "/", ".").Replace(s)
}

func notInSysctl(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_-.:@", r))
}

// checkSysctl returns an error unless a sysctl belongs to a namespace that the
// pod owns.
func checkSysctl(p string, cfg *runtimeapi.PodSandboxConfig, userns *UserNamespace) error {
	kind := namespaceOf(p)
	switch {
	case kind == specs.NetworkNamespace && NamespaceMode(cfg, Network) == runtimeapi.NamespaceMode_NODE:
		return invalid("sysctl %s in a pod with the node's network", p)
	case kind == specs.IPCNamespace && NamespaceMode(cfg, IPC) == runtimeapi.NamespaceMode_NODE:
		return invalid("sysctl %s in a pod with the node's IPC", p)
	case kind == specs.UserNamespace && userns == nil:
		return invalid("sysctl %s in a pod without a user namespace", p)
	case kind == "" || kind == specs.UTSNamespace: // the host name is set by the pod's configuration
		return invalid("sysctl %s does not belong to a namespace of the pod", p)
	}
	return nil
}

// namespaceOf returns the kind of namespace that a sysctl belongs to, "" for
// one of the node as a whole.
func namespaceOf(p string) specs.LinuxNamespaceType {
	ipc := []string{
		"kernel/auto_msgmni", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/msg_next_id",
		"kernel/sem", "kernel/sem_next_id", "kernel/shmall", "kernel/shmmax", "kernel/shmmni",
		"kernel/shm_next_id", "kernel/shm_rmid_forced",
	}

	switch {
	case strings.HasPrefix(p, "net/"):
		return specs.NetworkNamespace
	case slices.Contains(ipc, p), strings.HasPrefix(p, "fs/mqueue/"):
		return specs.IPCNamespace
	case strings.HasPrefix(p, "user/"):
		return specs.UserNamespace
	case p == "kernel/hostname", p == "kernel/domainname":
		return specs.UTSNamespace
	}

	return ""
}

// CheckSysctls checks the sysctls of an OCI specification: each must belong to
// a namespace other than this process's own, or it would change the node.
func CheckSysctls(s *specs.Spec) error {
	if s.Linux == nil {
		return nil
	}
	for name := range s.Linux.Sysctl {
		p, err := sysctlPath(name)
		if err != nil {
			return err
		}

		kind := namespaceOf(p)
		if kind == "" {
			return invalid("sysctl %s is not namespaced: it would change the node", name)
		}

		own, err := hasOwn(s.Linux.Namespaces, kind)
		if err != nil {
			return err
		}
		if !own {
			return invalid("sysctl %s would change the node: the container has no %s namespace of its own", name, kind)
		}
	}

	return nil
}

// hasOwn reports whether a container creates or joins a namespace other than
// this process's.
func hasOwn(list []specs.LinuxNamespace, kind specs.LinuxNamespaceType) (bool, error) {
	i := slices.IndexFunc(list, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
	if i < 0 {
		return false, nil
	}
	if list[i].Path == "" {
		return true, nil
	}

	file := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net"}[kind]
	if file == "" {
		file = string(kind)
	}

	theirs, err := os.Stat(list[i].Path)
	if err != nil {
		return false, invalid("%s namespace: %w", kind, err)
	}

	ours, err := os.Stat("/proc/self/ns/" + file)
	if err != nil {
		return false, fmt.Errorf("find the node's %s namespace: %w", kind, err)
	}
	return !os.SameFile(theirs, ours), nil
}
