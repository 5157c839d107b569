package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/host"
	"crisp/runtime/plan"
)

// machineOf bounds what processes ask for.
func machineOf(f host.Facts) plan.Machine {
	m := plan.Machine{Caps: uint64(f.Capabilities), LastCap: f.LastCap}
	if f.SysResource.OK() {
		return m
	}
	score := f.OOMScoreAdj
	m.MinOOMScore = &score
	m.HardLimits = map[string]uint64{}
	for name, n := range plan.RlimitNumbers() {
		var l unix.Rlimit
		if unix.Getrlimit(n, &l) == nil {
			m.HardLimits[name] = l.Max
		}
	}
	return m
}

// procfs returns the launcher's own, which is mounted at the first use. A
// failure, such as for lack of descriptors, is not for good.
func (l *Launcher) procfs() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.proc != nil {
		return l.proc, nil
	}
	var err error
	l.proc, err = newProcfs()
	return l.proc, err
}

// newProcfs mounts a procfs that is attached nowhere.
func newProcfs() (*os.File, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open procfs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make procfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount procfs: %w", err)
	}
	return os.NewFile(uintptr(fd), "procfs"), nil
}

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies returns the host's cgroup v1 hierarchies, none on a host with
// the unified one.
func (l *Launcher) hierarchies() ([]plan.Hierarchy, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unified || l.v1 != nil {
		return l.v1, nil
	}
	list, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup"))
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	for _, m := range list {
		if filepath.Dir(m.Mountpoint) != cgroupRoot {
			continue
		}
		l.v1 = append(l.v1, plan.Hierarchy{Dir: filepath.Base(m.Mountpoint), Options: selecting(m.VFSOptions)})
	}
	return l.v1, nil
}

// selecting returns those options of a hierarchy that a further mount of it
// must repeat.
func selecting(options string) []string {
	return slices.DeleteFunc(strings.Split(options, ","), func(o string) bool {
		return o == "rw" || o == "ro" || strings.HasPrefix(o, "release_agent=") || strings.HasPrefix(o, "cpuset_")
	})
}

// hostNodes finds the host's nodes of the devices that a container in a user
// namespace gets under other paths.
func hostNodes(s *specs.Spec) (map[string]string, error) {
	if !slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace }) {
		return nil, nil
	}
	nodes := map[string]string{}
	for _, d := range s.Linux.Devices {
		if d.Type == "p" || isNode(d.Path, d) {
			continue
		}
		kind := "char"
		if d.Type == "b" {
			kind = "block"
		}
		found := fmt.Sprintf("/dev/%s/%d:%d", kind, d.Major, d.Minor)
		if !isNode(found, d) {
			return nil, fmt.Errorf("device %s (%s %d:%d): %w", d.Path, d.Type, d.Major, d.Minor, ErrNoDevice)
		}
		nodes[filepath.Clean(d.Path)] = found
	}
	return nodes, nil
}

func isNode(path string, d specs.LinuxDevice) bool {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return false
	}
	want := uint32(unix.S_IFCHR)
	if d.Type == "b" {
		want = unix.S_IFBLK
	}
	return st.Mode&unix.S_IFMT == want && uint64(st.Rdev) == unix.Mkdev(uint32(d.Major), uint32(d.Minor))
}
