package criu

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// maxExternals bounds the arguments of CRIU: a container may have a hundred
// thousand mounts.
const maxExternals = 4096

// Externals lists what of a running container is not its own, given its processes,
// the first one first. Its mounts are listed by the kernel, so that a container that
// may mount decides what their paths are: they only become names.
func Externals(pids []int) ([]string, error) {
	first := pids[0]
	list, err := network(first)
	if err != nil {
		return nil, err
	}

	mounts, err := mountsOf(first)
	if err != nil {
		return nil, fmt.Errorf("list mounts of process %d: %w", first, err)
	}
	host, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("list own mounts: %w", err)
	}

	onHost := map[[2]int]bool{}
	for _, m := range host {
		onHost[[2]int{m.Major, m.Minor}] = true
	}
	own := map[int]bool{}
	for _, m := range mounts {
		own[m.ID] = true
		if m.Mountpoint == "/" || isOwn(m, onHost) {
			continue
		}
		list = append(list, fmt.Sprintf("mnt[%s]:%[1]s", m.Mountpoint))
	}

	list = append(list, files(pids, own)...)
	if len(list) > maxExternals {
		return nil, fmt.Errorf("%w: %d mounts and files of the node's, and the maximum is %d", ErrRefused, len(list), maxExternals)
	}
	return list, nil
}

// isOwn reports whether a mount is a file system of the container alone, which
// is made again, with its content, when the container is restored.
func isOwn(m *mountinfo.Info, onHost map[[2]int]bool) bool {
	switch m.FSType {
	case "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2":
		return true
	case "tmpfs":
		// The pod's shared memory belongs to all of its containers.
		return m.Root == "/" && m.Mountpoint != "/dev/shm" && !onHost[[2]int{m.Major, m.Minor}]
	default:
		return false
	}
}

func mountsOf(pid int) ([]*mountinfo.Info, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo.GetMountsFromReader(f, nil)
}

// network is the pod's network namespace, unless that is the node's.
func network(pid int) ([]string, error) {
	var own, theirs unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &own); err != nil {
		return nil, fmt.Errorf("examine own network namespace: %w", err)
	}
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &theirs); err != nil {
		return nil, fmt.Errorf("examine network namespace of process %d: %w", pid, err)
	}
	if theirs.Ino == own.Ino {
		return nil, nil
	}
	return []string{fmt.Sprintf("net[%d]:net", theirs.Ino)}, nil
}

// maxAsked is how many processes are asked for their standard streams.
const maxAsked = 1024

// files lists the node's files that the processes were given as their standard
// streams: /dev/null. Pipes need no mention.
func files(pids []int, own map[int]bool) []string {
	var list []string
	for _, pid := range pids[:min(len(pids), maxAsked)] {
		for fd := range 3 {
			if e, ok := file(fmt.Sprintf("/proc/%d", pid), fd, own); ok && !slices.Contains(list, e) {
				list = append(list, e)
			}
		}
	}
	return list
}

func file(proc string, fd int, own map[int]bool) (external string, ok bool) {
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("%s/fd/%d", proc, fd), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return "", false
	}
	info, err := os.ReadFile(fmt.Sprintf("%s/fdinfo/%d", proc, fd))
	if err != nil {
		return "", false // it was closed meanwhile
	}

	for line := range strings.Lines(string(info)) {
		text, ok := strings.CutPrefix(line, "mnt_id:")
		if !ok {
			continue
		}
		id, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || own[id] {
			return "", false
		}
		return fmt.Sprintf("file[%x:%x]", id, st.Ino), true
	}
	return "", false
}
