package doctor

import (
	"context"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/cgroup"
	"crisp/runtime/host"
)

// rights checks that this process may do what the daemon does.
func rights(_ context.Context, n *Node) []Finding {
	if os.Geteuid() != 0 {
		return []Finding{fail("run crisp doctor as root", "this is not root: much cannot be examined")}
	}
	if n.Facts.InitialUserNS == host.No {
		return []Finding{fail("run crisp outside of user namespaces", "root is only that of a user namespace")}
	}
	if n.Facts.SysResource == host.No {
		return []Finding{warn("run the daemon with CAP_SYS_RESOURCE", "without CAP_SYS_RESOURCE, limits cannot be raised, and containers are not protected from the OOM killer as kubelet asks")}
	}
	return []Finding{ok("root, with all that pods need")}
}

// kernel checks version and features.
func kernel(_ context.Context, n *Node) []Finding {
	if err := n.Facts.TooOld(); err != nil {
		return []Finding{fail("install a later kernel", "%v", err)}
	}
	var found []Finding
	if n.Facts.Overlay == host.No {
		found = append(found, fail("load the module: modprobe overlay", "there is no overlayfs, which root file systems of containers are made with"))
	}
	if n.Facts.UserNS == host.No {
		found = append(found, warn("allow user namespaces: user.max_user_namespaces, and the kernel's configuration", "there are no user namespaces: pods with hostUsers: false cannot run"))
	}
	if len(n.Facts.SeccompActions) == 0 {
		found = append(found, warn("use a kernel with CONFIG_SECCOMP_FILTER", "there are no seccomp filters: containers with RuntimeDefault are not confined by one"))
	}

	for _, f := range n.Facts.Lacks() {
		if f.Lost != "" {
			found = append(found, warn("docs/kernels.md has the versions; needed is Linux "+strconv.Itoa(f.Major)+"."+strconv.Itoa(f.Minor), "no %s: lost are %s", f.Name, f.Lost))
		}
	}
	for _, p := range n.Facts.Problems {
		found = append(found, warn("", "a probe was inconclusive: %v", p))
	}
	return unless(found, "Linux %s has what pods need", n.Facts.Kernel)
}

// cgroups checks the control groups.
func cgroups(_ context.Context, n *Node) []Finding {
	if err := cgroup.CheckDriver(n.Config.CgroupDriver); err != nil {
		return []Finding{fail("set cgroup_driver to the other one, and kubelet's to the same", "%v", err)}
	}
	groups, err := cgroup.New(n.Config.CgroupDriver, n.Config.CgroupParent)
	if err != nil {
		return []Finding{fail("mount the cgroup file system, as systemd does", "%v", err)}
	}
	defer groups.Close()

	var found []Finding
	for _, missing := range groups.Degraded() {
		found = append(found, warn("enable it in the kernel's configuration or command line", "%s", missing))
	}
	if !groups.V2() {
		found = append(found, warn("boot with systemd.unified_cgroup_hierarchy=1", "cgroup version 1: no memory QoS, no pressure figures, and Kubernetes gives it up"))
	}
	return unless(found, "version 2, driver %s", groups.Driver())
}

// sysctl is a setting with the least value that a node needs.
type sysctl struct {
	name  string
	least int
	why   string
	// only, if not nil, says whether it matters here.
	only func(*Node) bool
}

func sysctlsNeeded() []sysctl {
	return []sysctl{
		{"net.ipv4.ip_forward", 1, "packets between pods and other machines are dropped", nil},
		{"fs.inotify.max_user_instances", 512, "with many pods, programs and kubelet cannot watch files: \"too many open files\"", nil},
		{"fs.inotify.max_user_watches", 65536, "with many pods, programs and kubelet cannot watch files: \"no space left on device\"", nil},
		{"user.max_user_namespaces", 128, "pods with hostUsers: false cannot run", func(n *Node) bool { return n.Facts.UserNS.OK() }},
		{"kernel.pid_max", 32768, "the node runs out of processes", nil},
		{"kernel.threads-max", 15000, "the node runs out of threads", nil},
		{"fs.file-max", 100000, "the node runs out of open files", nil},
	}
}

// sysctls checks settings of the kernel.
func sysctls(_ context.Context, n *Node) []Finding {
	var found []Finding
	for _, s := range sysctlsNeeded() {
		if s.only != nil && !s.only(n) {
			continue
		}
		text, err := fs.ReadFile(n.Files, "proc/sys/"+strings.ReplaceAll(s.name, ".", "/"))
		if err != nil {
			continue // of a kernel without the feature
		}
		if value, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && value < s.least {
			found = append(found, warn("sysctl -w "+s.name+"="+strconv.Itoa(s.least)+", and in /etc/sysctl.d", "%s is %d: %s", s.name, value, s.why))
		}
	}
	return unless(found, "as pods need them")
}

// modules says which security modules confine containers.
func modules(_ context.Context, n *Node) []Finding {
	var found []Finding
	if n.Facts.AppArmor.OK() {
		found = append(found, ok("AppArmor is on: containers get profile %s", n.Config.AppArmorProfile))
	}
	if n.Facts.SELinux.OK() && n.Config.SELinux {
		found = append(found, ok("SELinux is on: containers get labels"))
	} else if n.Facts.SELinux.OK() {
		found = append(found, warn("set selinux = true", "SELinux is on, and containers get no labels"))
	}
	return unless(found, "neither AppArmor nor SELinux is on")
}

// clock checks that the time is kept.
func clock(context.Context, *Node) []Finding {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return []Finding{warn("", "the state of the clock cannot be read: %v", err)}
	}
	if state == unix.TIME_ERROR {
		return []Finding{warn("run a time service, such as systemd-timesyncd or chrony", "the clock is not synchronized: certificates and leases may be refused")}
	}
	return []Finding{ok("the clock is synchronized")}
}
