package launch

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/host"
	"crisp/runtime/plan"
)

// machineOf returns the bounds of the machine for plans.
func machineOf(f host.Facts) plan.Machine {
	m := plan.Machine{Caps: f.Capabilities, LastCap: f.LastCap}
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

// procfs returns the launcher's own, created at the first use. After a failure,
// such as EMFILE, the next use retries.
func (l *Launcher) procfs() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.proc != nil {
		return l.proc, nil
	}
	var err error
	l.proc, err = newProcfs(nil)
	return l.proc, err
}

// newProcfs creates a detached procfs, of this process's PID namespace or of another.
func newProcfs(ns *os.File) (*os.File, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open procfs: %w", err)
	}
	defer unix.Close(fs)

	if ns != nil {
		switch err := unix.FsconfigSetFd(fs, "pidns", int(ns.Fd())); err {
		case nil:
		case unix.EINVAL:
			return nil, fmt.Errorf("make procfs of another PID namespace: %w", ErrNoPIDOption)
		default:
			return nil, fmt.Errorf("make procfs of another PID namespace: %w", err)
		}
	}

	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make procfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount procfs: %w", err)
	}

	return os.NewFile(uintptr(fd), "procfs"), nil
}

// joinedPIDs returns the name or path of the PID namespace that a container
// joins, "" if it has its own or the host's.
func joinedPIDs(s *specs.Spec) string {
	for _, n := range s.Linux.Namespaces {
		if n.Type == specs.PIDNamespace {
			return n.Path
		}
	}
	return ""
}

// joinedProcfs creates the procfs of the PID namespace that a container joins:
// the container's process cannot, as it enters the namespace last, when others
// see it. Where the kernel cannot do so, and a process of the namespace is held
// as "target", the plan copies that one's procfs: its PID namespace is
// returned.
func (in *inputs) joinedProcfs(s *specs.Spec) (*plan.File, error) {
	name := joinedPIDs(s)
	ns := in.held[name]
	if strings.HasPrefix(name, "/") {
		f, err := in.keep(openFile(name, unix.O_RDONLY))
		if err != nil {
			return nil, err
		}
		ns = f
	}
	if ns == nil {
		return nil, fmt.Errorf("PID namespace %q: %w", name, ErrNotHeld)
	}

	procfs, err := newProcfs(ns)
	switch {
	case errors.Is(err, ErrNoPIDOption) && in.held["target"] != nil:
		return identityOf(ns)
	case err != nil:
		return nil, err
	}

	in.own("procfs/pid", procfs)

	return nil, nil
}

func identityOf(f *os.File) (*plan.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("examine %s: %w", f.Name(), err)
	}
	return &plan.File{Dev: st.Dev, Ino: st.Ino}, nil
}

const cgroupRoot = "/sys/fs/cgroup"
