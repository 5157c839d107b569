// Package host finds out, once and at start, what the machine offers: kernel
// features, privileges, security modules.
//
// A probe has three outcomes. What it could not find out is [Unknown], which
// features treat as missing, and the reason is kept in [Facts.Problems]. Where
// the kernel can be asked it is asked; a version number is consulted only
// where asking is impossible.
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

// OK reports whether the feature is known to be there.
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

// Facts is what the machine offers to this process. It does not change while
// the process runs.
type Facts struct {
	// Kernel is the version of the running kernel.
	Kernel Version
	// Capabilities is what this process has and may hand to a container.
	Capabilities capability.Set
	// LastCap is the highest capability number that the kernel knows.
	LastCap int
	// InitialUserNS says that this process is in the first user namespace,
	// without which capabilities do not reach the machine.
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

	// Compat32 says that programs of the 32-bit architecture run from which the
	// machine's own comes, 386 on amd64 and arm on arm64.
	Compat32 Answer
	// AppArmor and SELinux are enabled in the kernel.
	AppArmor, SELinux Answer
	// SeccompActions are the names of the actions that filters may use,
	// in the kernel's words: "kill_process", "errno".
	SeccompActions []string
	// UserNS: user namespaces may be created.
	UserNS Answer

	// IDMapMounts: mount_setattr knows MOUNT_ATTR_IDMAP (5.12). Whether a
	// given file system does is a question of its own.
	IDMapMounts Answer
	// RecursiveReadOnly: mount_setattr works on a whole tree (5.12).
	RecursiveReadOnly Answer
	// CloneDetached: open_tree clones mounts that are attached nowhere (6.15).
	CloneDetached Answer
	// Overlay: overlayfs is there. OverlayAppend: layers can be given one by
	// one with "lowerdir+" (6.7). OverlayLayerFD: also as descriptors (6.13).
	Overlay, OverlayAppend, OverlayLayerFD Answer
	// PidfdExit: PIDFD_GET_INFO tells the exit status of a process that was
	// not our child (6.15).
	PidfdExit Answer

	// HugePageSizes are the sizes that the kernel offers, smallest first, in
	// the form that the OCI runtime-spec uses: "2MB", "1GB".
	HugePageSizes []string

	// Problems says why answers are Unknown.
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

// exists answers whether a path is there.
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
