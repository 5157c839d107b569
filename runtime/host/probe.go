package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/capability"
)

// Version is a kernel version.
type Version struct {
	Major, Minor int
	// Release is the kernel's release string: "6.12.43+deb13-amd64".
	Release string
}

// AtLeast reports whether the version is major.minor or later.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

func (v Version) String() string { return v.Release }

func parseVersion(release string) (Version, error) {
	v := Version{Release: release}
	if _, err := fmt.Sscanf(release, "%d.%d", &v.Major, &v.Minor); err != nil {
		return Version{}, fmt.Errorf("parse %q: %w", release, err)
	}
	return v, nil
}

// Kernel returns the version of the running kernel.
func Kernel() (Version, error) {
	p := prober{root: "/"}
	return p.version()
}

func (p *prober) version() (Version, error) {
	release, err := p.read("proc/sys/kernel/osrelease")
	if err != nil {
		return Version{}, err
	}
	return parseVersion(release)
}

func (p *prober) kernel() {
	var err error
	if p.facts.Kernel, err = p.version(); err != nil {
		p.problem("kernel version", err)
		return
	}
	// By version: probes would need a process that exits, and one with a user
	// namespace.
	p.facts.PidfdExit = answer(p.facts.Kernel.AtLeast(6, 15))
	p.facts.OverlayIDMap = answer(p.facts.Kernel.AtLeast(5, 19))
	p.facts.Compat32 = p.compat32(runtime.GOARCH)
}

func (p *prober) privileges() {
	if err := p.capabilities(); err != nil {
		p.problem("capabilities", err)
	}
	uidMap, err := p.read("proc/self/uid_map")
	if err != nil {
		p.problem("user namespace", err)
	} else {
		p.facts.InitialUserNS = answer(slices.Equal(strings.Fields(uidMap), []string{"0", "0", "4294967295"}))
		p.facts.SysResource = answer(p.facts.InitialUserNS.OK() && p.facts.Capabilities.Has("CAP_SYS_RESOURCE"))
	}
	if p.facts.OOMScoreAdj, err = p.number("proc/self/oom_score_adj"); err != nil {
		p.problem("oom_score_adj", err)
	}
}

// capabilities reads the intersection of the permitted and the bounding set: it
// remains after execve as root.
func (p *prober) capabilities() error {
	status, err := p.read("proc/self/status")
	if err != nil {
		return err
	}

	set := ^capability.Set(0)
	found := 0
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		if key != "CapPrm" && key != "CapBnd" {
			continue
		}

		bits, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return err
		}
		set &= capability.Set(bits)
		found++
	}

	if found != 2 {
		return errors.New("no capability sets in /proc/self/status")
	}
	p.facts.Capabilities = set
	p.facts.LastCap, err = p.number("proc/sys/kernel/cap_last_cap")
	return err
}

func (p *prober) number(path string) (int, error) {
	text, err := p.read(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

func (p *prober) cgroup() {
	p.facts.Systemd = p.exists("systemd", "run/systemd/system")
	isV2, err := p.fsType("sys/fs/cgroup", unix.CGROUP2_SUPER_MAGIC)
	if err != nil {
		p.problem("cgroup version", err)
		return
	}
	p.facts.CgroupV2 = answer(isV2)
	if !isV2 {
		p.facts.CgroupKill = No
		return
	}
	p.facts.CgroupKill = p.cgroupKill()
}

// cgroupKill looks into any group but the root, which lacks the file.
func (p *prober) cgroupKill() Answer {
	groups, err := filepath.Glob(p.root + "sys/fs/cgroup/*/cgroup.procs")
	if err != nil || len(groups) == 0 {
		return answer(p.facts.Kernel.AtLeast(5, 14))
	}
	_, err = os.Stat(filepath.Join(filepath.Dir(groups[0]), "cgroup.kill"))
	return answer(err == nil)
}

func (p *prober) fsType(path string, magic int64) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(p.root+path, &st)
	return err == nil && st.Type == magic, err
}

func (p *prober) security() {
	enabled, err := p.read("sys/module/apparmor/parameters/enabled")
	switch {
	case err == nil:
		p.facts.AppArmor = answer(enabled == "Y")
		// Without securityfs no profile can be loaded or found.
		if enabled == "Y" && p.exists("AppArmor", "sys/kernel/security/apparmor") == No {
			p.facts.AppArmor = No
			p.problem("AppArmor", errors.New("enabled in the kernel, but securityfs is not mounted: containers are not confined (mount -t securityfs securityfs /sys/kernel/security)"))
		}
	case errors.Is(err, fs.ErrNotExist):
		p.facts.AppArmor = No
	default:
		p.problem("AppArmor", err)
	}

	// The kernel creates /sys/fs/selinux when SELinux is enabled; user space mounts it.
	isSELinux, err := p.fsType("sys/fs/selinux", unix.SELINUX_MAGIC)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.problem("SELinux", err)
	} else {
		// A read-only mount means a container, for which SELinux must appear disabled.
		readOnly := errors.Is(unix.Access(p.root+"sys/fs/selinux", unix.W_OK), unix.EROFS)
		p.facts.SELinux = answer(isSELinux && !readOnly)
	}

	actions, err := p.read("proc/sys/kernel/seccomp/actions_avail")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.problem("seccomp", err)
	}
	p.facts.SeccompActions = strings.Fields(actions)

	p.facts.UserNS = p.userNS()
}

func (p *prober) userNS() Answer {
	if a := p.exists("user namespaces", "proc/self/ns/user"); a != Yes {
		return a
	}
	limit, err := p.number("proc/sys/user/max_user_namespaces")
	if err != nil {
		p.problem("user namespaces", err)
		return Unknown
	}
	return answer(limit > 0)
}

func (p *prober) hugePages() {
	const dir = "sys/kernel/mm/hugepages"
	entries, err := os.ReadDir(p.root + dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.problem("huge pages", err)
		return
	}

	var sizes []uint64
	for _, e := range entries {
		var kb uint64
		if _, err := fmt.Sscanf(e.Name(), "hugepages-%dkB", &kb); err == nil {
			sizes = append(sizes, kb)
		}
	}

	slices.Sort(sizes)
	for _, kb := range sizes {
		p.facts.HugePageSizes = append(p.facts.HugePageSizes, pageSize(kb))
	}
}

// pageSize formats a size in kB in the largest unit that divides it.
func pageSize(kb uint64) string {
	units := []string{"KB", "MB", "GB"}
	i := 0
	for i < len(units)-1 && kb%1024 == 0 && kb > 0 {
		kb /= 1024
		i++
	}
	return strconv.FormatUint(kb, 10) + units[i]
}

// compat32 answers whether the kernel runs programs of the 32-bit architecture.
func (p *prober) compat32(architecture string) Answer {
	switch architecture {
	case "amd64":
		return p.exists("32-bit programs", "proc/sys/abi/vsyscall32") // exists only with IA32 emulation
	case "arm64":
		return personality32()
	}
	return No
}

// personality32 answers whether a thread may have a 32-bit personality, which
// arm64 permits where the CPUs support it.
func personality32() Answer {
	const perLinux32, ask = 8, 0xffffffff
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old, _, errno := unix.Syscall(unix.SYS_PERSONALITY, ask, 0, 0)
	if errno != 0 {
		return No
	}
	if _, _, errno = unix.Syscall(unix.SYS_PERSONALITY, perLinux32, 0, 0); errno != 0 {
		return No
	}
	_, _, errno = unix.Syscall(unix.SYS_PERSONALITY, old, 0, 0)
	return answer(errno == 0)
}
