package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// surroundings inspects everything except processes.
func (w *watcher) surroundings() {
	w.sockets()
	w.keys()
	w.cgroups()
	w.devices()
	w.connector()
	w.mounts()
}

// sockets connects to every socket that the network namespace has.
func (w *watcher) sockets() {
	list, _ := os.ReadFile("/proc/net/unix")
	for line := range strings.Lines(string(list)) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}

		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
			fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				continue
			}

			// An at sign stands for the zero byte of an abstract name.
			if unix.Connect(fd, &unix.SockaddrUnix{Name: f[7]}) == nil {
				w.report("socket", f[7])
			}
			unix.Close(fd)
		}
	}
}

// keys reads every visible key. A session keyring that is not its own is
// another container's, or the runtime's.
func (w *watcher) keys() {
	own, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	if err != nil {
		own = 0 // a filter forbids this call and those below
	}

	list, _ := os.ReadFile("/proc/keys")
	for line := range strings.Lines(string(list)) {
		var id int
		if n, _ := fmt.Sscanf(line, "%x", &id); n < 1 {
			continue
		}

		name, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, id)
		ours := strings.Contains(line, "crisp") || strings.Contains(name, "crisp")
		if ours || own != 0 && id != own && strings.Contains(line, " _ses:") && stays(id) {
			w.report("key", strings.TrimSpace(line))
		}

		payload := make([]byte, 4096)
		n, readErr := unix.KeyctlBuffer(unix.KEYCTL_READ, id, payload, 0)
		if err == nil && readErr == nil && n > 0 && bytes.Contains(payload[:min(n, len(payload))], w.secret) {
			w.report("secret", "key ", name)
		}
	}
}

// stays reports whether a keyring stays visible. The kernel makes a session keyring
// that its user may view, and a start closes it with its next system call: seen in
// between, it is empty and cannot be linked.
func stays(id int) bool {
	for range 20 {
		time.Sleep(5 * time.Millisecond)
		if _, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, id); err != nil {
			return false
		}
	}
	return true
}

// cgroups walks the visible cgroup tree, whose root is the container's own.
func (w *watcher) cgroups() {
	groups, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(groups)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[2] != "/" {
			w.report("cgroup", "is named ", f[1], " ", f[2])
		}
	}

	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // removed meanwhile
		}
		switch d.Name() {
		case "release_agent":
			w.report("release_agent", path)
		case "cgroup.procs":
			procs, _ := os.ReadFile(path)
			// Zero is a process that this namespace does not have.
			if bytes.HasPrefix(procs, []byte("0\n")) || bytes.Contains(procs, []byte("\n0\n")) {
				w.report("cgroup", "with foreign processes: ", path)
			}
			if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
				unix.Close(fd)
				w.report("cgroup", "writable: ", path)
			}
		}

		return nil
	})
}

// devices looks for disks and memory, and creates their nodes.
func (w *watcher) devices() {
	_ = filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeDevice != 0 && d.Type()&fs.ModeCharDevice == 0 {
			w.report("disk", path)
		}
		return nil
	})
	for _, number := range [][2]uint32{{8, 0}, {253, 0}, {254, 0}, {259, 0}, {7, 0}} {
		w.make(unix.S_IFBLK, number)
	}
	for _, number := range [][2]uint32{{1, 1}, {1, 2}, {1, 4}, {1, 11}, {10, 237}, {10, 229}} {
		w.make(unix.S_IFCHR, number)
	}
}

// make creates a device node and opens it.
func (w *watcher) make(kind uint32, number [2]uint32) {
	for _, dir := range []string{"/dev", "/tmp", "/dev/shm"} {
		path := fmt.Sprintf("%s/.made-%d-%d", dir, number[0], number[1])
		if unix.Mknod(path, kind|0o600, int(unix.Mkdev(number[0], number[1]))) != nil {
			continue
		}
		if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			w.report("device", number[0], ":", number[1], " in ", dir)
			unix.Close(fd)
		}
		_ = os.Remove(path) // it was made
	}
}

// connector subscribes to the kernel's events about every process that starts
// or exits.
func (w *watcher) connector() {
	const netlinkConnector, procIndex = 11, 1
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, netlinkConnector)
	if err != nil {
		return
	}
	defer unix.Close(fd)

	timeout := unix.NsecToTimeval(int64(20 * time.Millisecond))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	if unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: procIndex}) != nil {
		return
	}

	// A netlink header of 40 bytes in all, the address of process events, "listen".
	listen := make([]byte, 40)
	listen[0], listen[4], listen[16], listen[20], listen[32], listen[36] = 40, 3, procIndex, 1, 4, 1
	_ = unix.Sendto(fd, listen, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})

	buf := make([]byte, 4096)
	for range 3 {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == nil && n > 52 && buf[36] != 0 { // the first reply only acknowledges the subscription
			w.report("netlink", "reports the node's processes")
		}
	}
}

// mounts reads the mount table: a source on the node's own disks other than the
// root reveals the runtime's directories.
func (w *watcher) mounts() {
	for _, file := range []string{"/proc/self/mountinfo", "/proc/1/mountinfo"} {
		data, _ := os.ReadFile(file)
		if bytes.Contains(data, []byte("/keeper.sock")) || bytes.Contains(data, w.secret) {
			w.report("mount", file)
		}
	}
}
