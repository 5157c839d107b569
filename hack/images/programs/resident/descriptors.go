package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mostDescriptors bounds the descriptors tried per process.
const mostDescriptors = 64

// descriptors goes through a process's open files, by name.
func (w *watcher) descriptors(dir string, early bool) {
	list, _ := os.ReadDir(dir + "/fd")
	for _, e := range list {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}

		path := dir + "/fd/" + e.Name()
		link, err := os.Readlink(path)
		if err != nil {
			continue
		}

		if early && n > 2 && !strings.HasPrefix(link, "socket:") {
			w.early(dir, "descriptor", n, " is ", link)
		}
		w.through(path, link, dir)
	}
}

// through reaches the node through a directory's descriptor.
func (w *watcher) through(path, link, dir string) {
	var st unix.Stat_t
	if unix.Stat(path+"/../../../../../../../../../../.."+w.node, &st) == nil {
		w.report("node", "by descriptor ", link, exe(dir))
	}
	if unix.Stat(path+w.node, &st) == nil {
		w.report("node", "below descriptor ", link, exe(dir))
	}
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return
	}

	if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		w.report("disk", link, exe(dir))
		unix.Close(fd)
	}
}

// take duplicates the descriptors of a process.
func (w *watcher) take(pid int, early bool) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(pidfd)

	dir := fmt.Sprintf("/proc/%d", pid)
	for n := range mostDescriptors {
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue
		}

		w.through(fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprint("taken ", n), dir)
		var st unix.Stat_t
		if early && n > 2 && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			w.abuse(fd, dir)
		}
		unix.Close(fd)
	}
}

// abuse uses a socket of the runtime's: it reads messages in flight, with
// descriptors, and sends forged ones. The test checks that they have no effect.
func (w *watcher) abuse(fd int, dir string) {
	buf, oob := make([]byte, 4096), make([]byte, 4096)
	n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_DONTWAIT|unix.MSG_PEEK|unix.MSG_CMSG_CLOEXEC)
	if err == nil && oobn > 0 {
		if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
			for _, m := range messages {
				w.rights(m, dir)
			}
		}
	}
	if err == nil && n > 0 {
		w.report("message", strconv.Quote(string(buf[:n])), exe(dir))
	}

	if peer, err := unix.Getpeername(fd); err == nil {
		if u, ok := peer.(*unix.SockaddrUnix); ok && u.Name != "" && u.Name != "@" { // which stands for no name
			w.report("socket", "of the runtime, to ", u.Name, exe(dir))
		}
	}

	for _, lie := range [][]byte{{0}, make([]byte, 4), make([]byte, 8), make([]byte, 64), []byte("\x01\x00\x00\x00failed")} {
		_ = unix.Sendto(fd, lie, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	}
}

func (w *watcher) rights(m unix.SocketControlMessage, dir string) {
	fds, err := unix.ParseUnixRights(&m)
	if err != nil {
		return
	}
	for _, fd := range fds {
		link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		w.report("descriptor", "sent: ", link, exe(dir))
		unix.Close(fd)
	}
}
