// Package host probes, once at start, what the machine supports: kernel
// features, privileges, security modules.
//
// A probe has three outcomes. If it fails the answer is [Unknown], which
// features treat as missing, and the reason is in [Facts.Problems]. Features
// are probed directly where possible; the kernel version is used only where
// that is impossible.
package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"crisp/runtime/capability"
)

// Answer is the outcome of a probe.
type Answer uint8

// The answers. The zero Answer is Unknown.
const (
	Unknown Answer = iota
	No
	Yes
)

// OK reports whether the feature is known to be available.
func (a Answer) OK() bool { return a == Yes }

func (a Answer) String() string {
	switch a {
	case No:
		return "no"
	case Yes:
		return "yes"
	default:
		return "unknown"
	}
}

func answer(yes bool) Answer {
	if yes {
		return Yes
	}
	return No
}

// Facts is what the machine supports for this process. It does not change while
// the process runs.
type Facts struct {
	// Kernel is the version of the running kernel.
	Kernel Version
	// Capabilities are those that this process has and may grant to a container.
	Capabilities capability.Set
	// LastCap is the highest capability number that the kernel knows.
	LastCap int
	// InitialUserNS: this process is in the initial user namespace, outside of
	// which capabilities do not apply to the machine.
	InitialUserNS Answer
	// SysResource: oom_score_adj may be lowered and hard limits raised.
	SysResource Answer
	// OOMScoreAdj is this process's own value. Without SysResource no child
	// can have a lower one.
	OOMScoreAdj int

	// CgroupV2: /sys/fs/cgroup is the unified hierarchy.
	CgroupV2 Answer
	// CgroupKill: groups have a cgroup.kill file (5.14).
	CgroupKill Answer
	// Systemd: systemd is the machine's init.
	Systemd Answer

	// Compat32: programs of the corresponding 32-bit architecture run, 386 on
	// amd64 and arm on arm64.
	Compat32 Answer
	// AppArmor and SELinux are enabled in the kernel.
	AppArmor, SELinux Answer
	// SeccompActions are the names of the actions that filters may use, by the
	// kernel's names: "kill_process", "errno".
	SeccompActions []string
	// UserNS: user namespaces may be created.
	UserNS Answer

	// IDMapMounts: mount_setattr supports MOUNT_ATTR_IDMAP (5.12). A given file
	// system may still not support it.
	IDMapMounts Answer
	// RecursiveReadOnly: mount_setattr works on a whole tree (5.12).
	RecursiveReadOnly Answer
	// CloneDetached: open_tree clones detached mounts (6.15).
	CloneDetached Answer
	// Overlay: overlayfs is available. OverlayIDMap: its layers may be ID-mapped
	// mounts (5.19).
	Overlay, OverlayIDMap Answer
	// PidfdExit: PIDFD_GET_INFO returns the exit status of a process that is
	// not a child (6.15).
	PidfdExit Answer

	// HugePageSizes are the sizes that the kernel supports, smallest first, in
	// the form of the OCI runtime-spec: "2MB", "1GB".
	HugePageSizes []string

	// Problems are the reasons why answers are Unknown.
	Problems []error
}

// Probe examines the machine.
func Probe() Facts {
	p := prober{root: "/"}
	p.kernel()
	p.privileges()
	p.cgroup()
	p.security()
	p.mounts()
	p.hugePages()
	return p.facts
}

// prober collects facts. Files are read below root.
type prober struct {
	root  string
	facts Facts
}

func (p *prober) problem(what string, err error) {
	p.facts.Problems = append(p.facts.Problems, fmt.Errorf("probe %s: %w", what, err))
}

// exists answers whether a path exists.
func (p *prober) exists(what, path string) Answer {
	_, err := os.Stat(p.root + path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.problem(what, err)
		return Unknown
	}
	return answer(err == nil)
}

// read returns the content of a small file without the white space around it.
func (p *prober) read(path string) (string, error) {
	data, err := os.ReadFile(p.root + path)
	return strings.TrimSpace(string(data)), err
}
