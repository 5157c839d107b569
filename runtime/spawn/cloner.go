package spawn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Cloner clones children from a thread with its own descriptor table, which
// has nothing but the standard descriptors and those of the child. Without it
// a child copies and then closes all descriptors of the caller, however many.
type Cloner struct {
	sock int   // sends a child's descriptors to the thread
	kept []int // the thread's own descriptors

	mu    sync.Mutex // held for each child
	seq   uint64     // guarded by mu; the last child's number
	work  chan *cloning
	ended chan struct{} // closed when the thread has ended
}

// cloning is a child to clone.
type cloning struct {
	m     *interpreter
	seq   uint64
	files []int // its descriptors' numbers in the thread
	pid   int   // the child's, or a negative errno
	err   error
	done  chan struct{} // closed after the clone
}

// maxPassed is how many descriptors a message may have (SCM_MAX_FD).
const maxPassed = 253

// NewCloner starts the thread. It should be called before the program has many
// descriptors, which the thread copies once and closes.
func NewCloner() (*Cloner, error) {
	runtimes, err := pollerFiles()
	if err != nil {
		return nil, fmt.Errorf("start thread to clone: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start thread to clone: make socket: %w", err)
	}

	kept := append(runtimes, 0, 1, 2, pair[1])
	c := &Cloner{sock: pair[0], kept: kept, work: make(chan *cloning), ended: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(c.ended)
		offMain(func() { c.serve(pair[1], ready) })
	}()

	err = <-ready
	unix.Close(pair[1])
	if err != nil {
		<-c.ended
		unix.Close(c.sock)
		return nil, fmt.Errorf("start thread to clone: %w", err)
	}
	return c, nil
}

// Close ends the thread. No child may be started meanwhile.
func (c *Cloner) Close() {
	close(c.work)
	<-c.ended
	unix.Close(c.sock)
}

// numbers returns the numbers that so many descriptors get in the thread: the
// kernel chooses the lowest free one for each that is received.
func (c *Cloner) numbers(count int) []int {
	list := make([]int, 0, count)
	for n := 0; len(list) < count; n++ {
		if !slices.Contains(c.kept, n) {
			list = append(list, n)
		}
	}
	return list
}

// pollerFiles returns the descriptors of the Go runtime's poller: any thread
// may have to use them, at any time.
func pollerFiles() ([]int, error) {
	// The poller is set up with the first file that can be polled.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	defer w.Close()

	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("list own descriptors: %w", err)
	}

	for _, e := range dir {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || linkOf(fd) != "anon_inode:[eventpoll]" {
			continue
		}
		events, polls, err := polled(fd, int(r.Fd()))
		if err != nil {
			return nil, err
		}
		if polls && len(events) > 0 {
			return append(events, fd), nil
		}
	}

	return nil, errors.New("no descriptor of the Go runtime's poller found in /proc/self/fd")
}

// polled returns the events (eventfd) that a poller waits for, and whether it
// waits for a file as well.
func polled(poller, file int) (events []int, polls bool, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", poller))
	if err != nil {
		return nil, false, fmt.Errorf("examine poller: %w", err)
	}

	for line := range strings.Lines(string(b)) {
		// tfd:        5 events: 80000001 data: …
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "tfd:" {
			continue
		}

		fd, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, false, fmt.Errorf("examine poller: malformed line %q", line)
		}
		polls = polls || fd == file
		if linkOf(fd) == "anon_inode:[eventfd]" {
			events = append(events, fd)
		}
	}

	return events, polls, nil
}

// linkOf is what a descriptor refers to, empty if it is closed.
func linkOf(fd int) string {
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return ""
	}
	return target
}

// offMain runs f on a thread that ends afterwards. It is not the main one, whose
// descriptors are those that others see as the process's.
func offMain(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return // still locked, so that the thread ends
	}

	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() { defer close(done); offMain(f) }()
	<-done
}

// serve is the thread.
func (c *Cloner) serve(sock int, ready chan<- error) {
	if err := leaveTable(c.kept); err != nil {
		ready <- err
		return
	}

	ready <- nil
	for w := range c.work {
		w.pid, w.err = c.clone(sock, w)
		close(w.done)
	}
}

// leaveTable gives this thread a descriptor table that has only the kept ones.
func leaveTable(kept []int) error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("leave descriptor table: %w", err)
	}
	for _, r := range unkept(kept) {
		if err := unix.CloseRange(uint(r.from), uint(r.to-1), 0); err != nil {
			return fmt.Errorf("close descriptors: %w", err)
		}
	}
	return nil
}

// clone receives a child's descriptors, clones it, and closes them.
func (c *Cloner) clone(sock int, w *cloning) (int, error) {
	var got []int
	defer func() {
		for _, fd := range got {
			unix.Close(fd)
		}
	}()

	for len(got) < len(w.files) {
		seq, fds, err := receiveFiles(sock)
		if err != nil {
			return 0, fmt.Errorf("receive descriptors: %w", err)
		}
		if seq == w.seq {
			got = append(got, fds...)
			continue
		}
		for _, fd := range fds { // left from an earlier child that failed
			unix.Close(fd)
		}
	}

	// The program is compiled for these numbers.
	if !slices.Equal(got, w.files) {
		return 0, fmt.Errorf("receive descriptors: %w: numbers %v, want %v", ErrInputs, got, w.files)
	}
	return w.m.start(entry()), nil
}

// receiveFiles receives one message: a child's number and descriptors.
func receiveFiles(sock int) (seq uint64, files []int, err error) {
	var word [8]byte
	oob := make([]byte, unix.CmsgSpace(4*maxPassed))
	_, n, flags, _, err := unix.Recvmsg(sock, word[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, nil, err
	}

	messages, err := unix.ParseSocketControlMessage(oob[:n])
	for i := range messages {
		fds, perr := unix.ParseUnixRights(&messages[i])
		files, err = append(files, fds...), errors.Join(err, perr)
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = unix.EMFILE
	}

	if err != nil {
		for _, fd := range files {
			unix.Close(fd)
		}
		return 0, nil, err
	}
	return binary.NativeEndian.Uint64(word[:]), files, nil
}

// start clones a child with these descriptors, whose numbers in the child are
// those of [Cloner.numbers]. The caller must not reap it before start has returned.
func (c *Cloner) start(m *interpreter, files []int) (pid, pidfd int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	var word [8]byte
	binary.NativeEndian.PutUint64(word[:], c.seq)
	for part := range slices.Chunk(files, maxPassed) {
		// What was sent before an error is dropped with the next child's.
		if err := unix.Sendmsg(c.sock, word[:], unix.UnixRights(part...), nil, unix.MSG_DONTWAIT); err != nil {
			return 0, -1, fmt.Errorf("send descriptors to the thread that clones: %w", err)
		}
	}

	w := &cloning{m: m, seq: c.seq, files: c.numbers(len(files)), done: make(chan struct{})}
	c.work <- w
	<-w.done
	if w.err != nil || w.pid < 0 {
		return w.pid, -1, w.err
	}

	pidfd, err = unix.PidfdOpen(w.pid, 0)
	if err != nil {
		_ = unix.Kill(w.pid, unix.SIGKILL) // not reaped, so it is this process
		return 0, -1, fmt.Errorf("open pidfd of %d: %w", w.pid, err)
	}
	return w.pid, pidfd, nil
}

// startHere clones a child that copies the descriptors of this process.
func (m *interpreter) startHere() (pid, pidfd int) {
	m.clone.flags |= unix.CLONE_PIDFD
	m.clone.pidfd = addrOf(&m.pidfd)
	pid = m.start(entry())
	return pid, int(m.pidfd)
}
