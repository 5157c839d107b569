package criu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/capability"
	"crisp/runtime/plan"
	"crisp/runtime/untrusted"
)

// Restored is a container that was restored and has not run yet.
type Restored struct {
	// Restorer is CRIU's process, in the namespaces that the pod's containers share,
	// and Tree where it has the mounts that a start of the container would have made.
	Restorer int
	Tree     string
	// First is the container's first process, and Pids are all of its processes.
	First int
	Pids  []int
	// Spec is what was asked for.
	Spec *specs.Spec
}

// Verify has the kernel tell what the processes of a restored container are and have,
// and compares that with what a start of it would give them. What the checkpoint says
// does not matter here: it may have had CRIU do anything. The error is [ErrForbidden].
//
// A time namespace is CRIU's way to let clocks go on. It compares, for every thread, other namespaces, users and groups, capabilities,
// no_new_privs, the presence of a filter, and security labels; for every process the
// mounts that it sees, its root, its working directory and its descriptors. It lowers
// resource limits, and raises scores for the OOM killer, to what was asked for.
func (r Restored) Verify() error {
	want, err := r.expected()
	if err != nil {
		return fmt.Errorf("verify restored processes: %w", err)
	}
	for _, pid := range r.Pids {
		if err := r.verifyProcess(pid, want); err != nil {
			return fmt.Errorf("verify restored process %d: %w", pid, err)
		}
	}
	return nil
}

// expectation is what a start would give.
type expectation struct {
	namespaces map[string]string // by kind, of those that the restorer has entered
	own        map[string]string // by kind, of those that the restored processes have to themselves
	foreign    map[string]string // those of the restorer that they must not be in
	mounts     []*mountinfo.Info // with paths in the container
	devices    map[[2]int]bool
	// bounding is what a process can ever have, most what it may have.
	bounding, most capability.Set
}

func (r Restored) expected() (*expectation, error) {
	want := &expectation{namespaces: map[string]string{}, own: map[string]string{}, foreign: map[string]string{}, devices: map[[2]int]bool{}}
	for _, kind := range []string{"net", "ipc", "uts", "cgroup", "user"} {
		link, err := namespaceOf(r.Restorer, kind)
		if err != nil {
			return nil, err
		}
		want.namespaces[kind] = link
	}
	for _, kind := range []string{"pid", "mnt"} {
		own, err := namespaceOf(r.First, kind)
		if err != nil {
			return nil, err
		}
		foreign, err := namespaceOf(r.Restorer, kind)
		if err != nil {
			return nil, err
		}
		want.own[kind], want.foreign[kind] = own, foreign
	}

	all, err := mountsOf(r.Restorer)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if at, ok := strings.CutPrefix(m.Mountpoint, r.Tree); ok && (at == "" || at[0] == '/') {
			m.Mountpoint = "/" + strings.TrimPrefix(at, "/")
			want.mounts = append(want.mounts, m)
			want.devices[[2]int{m.Major, m.Minor}] = true
		}
	}
	if len(want.mounts) == 0 {
		return nil, fmt.Errorf("%s has no mounts", r.Tree)
	}

	if c := r.Spec.Process.Capabilities; c != nil {
		want.bounding, _ = capability.Parse(c.Bounding...)
		want.most = want.bounding
		if r.Spec.Process.NoNewPrivileges {
			want.most, _ = capability.Parse(c.Permitted...)
		}
	}
	return want, nil
}

func namespaceOf(pid int, kind string) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
}

func (r Restored) verifyProcess(pid int, want *expectation) error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, task := range tasks {
		if err := r.verifyThread(fmt.Sprintf("/proc/%d/task/%s", pid, task.Name()), want); err != nil {
			return err
		}
	}

	ids, err := r.verifyMounts(pid, want)
	if err != nil {
		return err
	}
	if err := verifyFiles(pid, ids); err != nil {
		return err
	}
	return r.limit(pid)
}

// nests reports whether the container may make namespaces and mounts of its own.
func (w *expectation) nests() bool { return w.bounding.Has("CAP_SYS_ADMIN") }

func (r Restored) verifyThread(dir string, want *expectation) error {
	for kind, link := range want.namespaces {
		got, err := os.Readlink(dir + "/ns/" + kind)
		if err != nil {
			return err
		}
		if got != link && !(want.nests() && kind != "user" && kind != "cgroup") {
			return fmt.Errorf("%w: it is in %s, not in %s", ErrForbidden, got, link)
		}
	}
	for kind, link := range want.own {
		got, err := os.Readlink(dir + "/ns/" + kind)
		if err != nil {
			return err
		}
		if got == want.foreign[kind] || got != link && !want.nests() {
			return fmt.Errorf("%w: it is in %s, not in %s", ErrForbidden, got, link)
		}
	}

	status, err := statusOf(dir)
	if err != nil {
		return err
	}
	if err := r.verifyCredentials(status, want); err != nil {
		return err
	}
	return r.verifyLabels(dir)
}

// statusOf reads /proc/PID/status.
func statusOf(dir string) (map[string][]string, error) {
	text, err := os.ReadFile(dir + "/status")
	if err != nil {
		return nil, err
	}
	status := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			status[key] = strings.Fields(value)
		}
	}
	return status, nil
}

func (r Restored) verifyCredentials(status map[string][]string, want *expectation) error {
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if len(status[set]) != 1 {
			return fmt.Errorf("%w: it has no %s", ErrForbidden, set)
		}
		got, err := strconv.ParseUint(status[set][0], 16, 64)
		if err != nil {
			return fmt.Errorf("read %s: %w", set, err)
		}
		most := want.most
		if set == "CapBnd" {
			most = want.bounding
		}
		if more := capability.Set(got) &^ most; more != 0 {
			return fmt.Errorf("%w: it has capabilities %#x in %s that were not asked for", ErrForbidden, uint64(more), set)
		}
	}

	p, maps := r.Spec.Process, r.Spec.Linux
	for _, ids := range []struct {
		name    string
		allowed []uint32
		maps    []specs.LinuxIDMapping
		by      string
	}{
		{"Uid", []uint32{p.User.UID}, maps.UIDMappings, "CAP_SETUID"},
		{"Gid", []uint32{p.User.GID}, maps.GIDMappings, "CAP_SETGID"},
		{"Groups", append([]uint32{p.User.GID}, p.User.AdditionalGids...), maps.GIDMappings, "CAP_SETGID"},
	} {
		if !p.NoNewPrivileges || want.most.Has(ids.by) {
			continue // it may have become anybody, with a set-user-ID program
		}
		for _, text := range status[ids.name] {
			id, err := strconv.ParseUint(text, 10, 32)
			if err != nil {
				return fmt.Errorf("read %s: %w", ids.name, err)
			}
			same := func(allowed uint32) bool { return plan.HostID(ids.maps, allowed) == uint32(id) }
			if !slices.ContainsFunc(ids.allowed, same) {
				return fmt.Errorf("%w: its %s has %d, which was not asked for", ErrForbidden, ids.name, id)
			}
		}
	}

	if p.NoNewPrivileges && !slices.Equal(status["NoNewPrivs"], []string{"1"}) {
		return fmt.Errorf("%w: it may gain privileges", ErrForbidden)
	}
	if r.Spec.Linux.Seccomp != nil && !slices.Equal(status["Seccomp"], []string{"2"}) {
		return fmt.Errorf("%w: it has no seccomp filter, which was asked for", ErrForbidden)
	}
	return nil
}

// verifyLabels compares the labels of security modules.
func (r Restored) verifyLabels(dir string) error {
	p := r.Spec.Process
	for file, label := range map[string]string{"attr/apparmor/current": p.ApparmorProfile, "attr/current": p.SelinuxLabel} {
		if label == "" || file == "attr/apparmor/current" && label == "unconfined" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		got, _, _ := strings.Cut(string(bytes.TrimRight(text, "\n\x00")), " (")
		if got != label {
			return fmt.Errorf("%w: its label is %s, not %s", ErrForbidden, untrusted.Of(got).Message(maxReason), label)
		}
	}
	return nil
}

// verifyMounts compares the mounts that a process sees, and returns their IDs.
func (r Restored) verifyMounts(pid int, want *expectation) (map[uint64]bool, error) {
	mounts, err := mountsOf(pid)
	if err != nil {
		return nil, err
	}
	ns, err := namespaceOf(pid, "mnt")
	if err != nil {
		return nil, err
	}

	ids := map[uint64]bool{}
	missing := slices.Clone(want.mounts)
	for _, m := range mounts {
		ids[uint64(m.ID)] = true
		at := slices.IndexFunc(missing, func(w *mountinfo.Info) bool { return w.Mountpoint == m.Mountpoint && w.FSType == m.FSType })
		if at >= 0 {
			if err := verifyMount(m, missing[at]); err != nil {
				return nil, err
			}
			missing = slices.Delete(missing, at, at+1)
			continue
		}
		if r.isConsole(m, mounts) {
			continue
		}
		if !want.nests() || !isVirtual(m) && !want.devices[[2]int{m.Major, m.Minor}] {
			return nil, fmt.Errorf("%w: it has a mount at %s that was not asked for", ErrForbidden, untrusted.Of(m.Mountpoint).Message(maxReason))
		}
	}
	if len(missing) > 0 && ns == want.own["mnt"] && !want.nests() {
		return nil, fmt.Errorf("%w: it has no mount at %s", ErrForbidden, untrusted.Of(missing[0].Mountpoint).Message(maxReason))
	}
	return ids, nil
}

// isConsole reports whether a mount is the container's own terminal, which a start would
// have mounted there.
func (r Restored) isConsole(m *mountinfo.Info, all []*mountinfo.Info) bool {
	return r.Spec.Process.Terminal && m.Mountpoint == "/dev/console" && m.FSType == "devpts" &&
		slices.ContainsFunc(all, func(pts *mountinfo.Info) bool {
			return pts.Mountpoint == "/dev/pts" && pts.Major == m.Major && pts.Minor == m.Minor
		})
}

// verifyMount compares a mount with that of a start.
func verifyMount(got, want *mountinfo.Info) error {
	at := untrusted.Of(got.Mountpoint).Message(maxReason)
	for _, flag := range []string{"ro", "nosuid", "nodev", "noexec"} {
		if hasOption(want.Options, flag) && !hasOption(got.Options, flag) {
			return fmt.Errorf("%w: the mount at %s is not %s", ErrForbidden, at, flag)
		}
	}

	same := got.Major == want.Major && got.Minor == want.Minor
	switch {
	case got.Root != want.Root && got.FSType != "tmpfs":
		return fmt.Errorf("%w: the mount at %s shows %s, not %s", ErrForbidden, at, untrusted.Of(got.Root).Message(maxReason), untrusted.Of(want.Root).Message(maxReason))
	case got.FSType == "proc" && same:
		// The tree's shows the processes of the node.
		return fmt.Errorf("%w: the procfs at %s is not its own", ErrForbidden, at)
	case !isVirtual(got) && !same:
		return fmt.Errorf("%w: the mount at %s is of another file system", ErrForbidden, at)
	}
	return nil
}

func hasOption(options, name string) bool { return slices.Contains(strings.Split(options, ","), name) }

// isVirtual reports whether a file system has nothing but the kernel's own, or what the
// container itself puts there.
func isVirtual(m *mountinfo.Info) bool {
	switch m.FSType {
	case "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "tmpfs":
		return true
	}
	return false
}

// verifyFiles checks that all files of a process are on its own mounts, but for pipes and
// such, and the null device.
func verifyFiles(pid int, ids map[uint64]bool) error {
	proc := fmt.Sprintf("/proc/%d", pid)
	for _, name := range []string{"root", "cwd", "exe"} {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, proc+"/"+name, 0, unix.STATX_MNT_ID, &st)
		if err == unix.ENOENT && name == "exe" {
			continue // it was removed
		}
		if err != nil {
			return fmt.Errorf("examine its %s: %w", name, err)
		}
		if !ids[st.Mnt_id] {
			return fmt.Errorf("%w: its %s is on no mount of its own", ErrForbidden, name)
		}
	}

	dir, err := os.Open(proc + "/fd")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(0)
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Statx_t
		if err := unix.Statx(int(dir.Fd()), name, 0, unix.STATX_MNT_ID|unix.STATX_TYPE, &st); err != nil {
			return fmt.Errorf("examine its descriptor %s: %w", name, err)
		}
		if ids[st.Mnt_id] {
			continue
		}
		kind := uint32(st.Mode) & unix.S_IFMT
		link, err := os.Readlink(proc + "/fd/" + name)
		if err != nil {
			return fmt.Errorf("examine its descriptor %s: %w", name, err)
		}
		null := kind == unix.S_IFCHR && st.Rdev_major == 1 && st.Rdev_minor == 3
		nameless := kind == unix.S_IFIFO || kind == unix.S_IFSOCK || strings.HasPrefix(link, "anon_inode:") || strings.HasPrefix(link, "/memfd:")
		if !null && !nameless {
			return fmt.Errorf("%w: its descriptor %s is on no mount of its own", ErrForbidden, name)
		}
	}
	return nil
}

// limit applies what a start would set, and a process of its own may only tighten.
func (r Restored) limit(pid int) error {
	for _, l := range r.Spec.Process.Rlimits {
		n, ok := plan.RlimitNumber(l.Type)
		if !ok {
			continue
		}
		var now unix.Rlimit
		if err := unix.Prlimit(pid, n, nil, &now); err != nil {
			return fmt.Errorf("read its %s: %w", l.Type, err)
		}
		if now.Max <= l.Hard {
			continue
		}
		if err := unix.Prlimit(pid, n, &unix.Rlimit{Cur: min(now.Cur, l.Hard), Max: l.Hard}, nil); err != nil {
			return fmt.Errorf("lower its %s: %w", l.Type, err)
		}
	}

	if r.Spec.Process.OOMScoreAdj == nil {
		return nil
	}
	file := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("read its oom_score_adj: %w", err)
	}
	if want := *r.Spec.Process.OOMScoreAdj; now < want {
		return writeProc(file, strconv.Itoa(want))
	}
	return nil
}

func writeProc(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
