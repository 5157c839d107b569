package spawn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
)

// Options say what of its parent's settings a child does not inherit.
type Options struct {
	// NoFile is the limit on open files that the child gets before its first
	// step; nil keeps the caller's, which Go raises at start.
	NoFile *unix.Rlimit
	// OOMScoreAdj is written to the child's oom_score_adj before its first
	// step; empty keeps the caller's.
	OOMScoreAdj string
	// Memory, if not nil, keeps the memory of children for later ones.
	Memory *sync.Pool
}

// EventKind is what happened to a child.
type EventKind uint8

// The kinds of event.
const (
	// Forked: the plan goes on in the process Pid, a child of the caller too;
	// the one before it ends by itself and must be reaped.
	Forked EventKind = iota + 1
	// Waiting: the child stands at gate Step until [Child.Release].
	Waiting
	// Passed: the child sent the descriptor FD, which the receiver owns.
	Passed
	// Executed: execve took place. It is the last event.
	Executed
	// Ended: the plan ran to its end without execve and the child exits 0. It
	// is the last event.
	Ended
)

// Event is one report of a child.
type Event struct {
	Kind EventKind
	Step int
	Pid  int
	FD   int
}

// Child is a process on its way through a plan.
type Child struct {
	// Pid is the process that was cloned, and PidFD its descriptor. Both
	// belong to the caller of Start, who must reap the process.
	Pid, PidFD int

	plan    *plan.Plan
	sock    *os.File // nonblocking, so that a wait occupies no thread
	raw     syscall.RawConn
	fork    int           // index of the step that forks, -1 without
	last    uint32        // the last report
	waiting []Event       // events that overtook the report of the fork
	failed  *StepError    // a failure that overtook it
	over    bool          // the last event was reported
	free    chan struct{} // closed when the child has left our memory
	machine *machine
	memory  *sync.Pool // of *machine; may be nil
}

// Start clones a child and lets it run the plan. The descriptors in files
// are the plan's inputs and stay the caller's. The caller reads the child's
// events with [Child.Next] until the last and then closes it.
func Start(p *plan.Plan, files []int, opt Options) (*Child, error) {
	sock, childs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("%s: make socket: %w", p.Name, err)
	}
	defer childs.Close()
	c := &Child{plan: p, sock: sock, fork: -1, free: make(chan struct{}), memory: opt.Memory}
	m, err := compile(p, files, int(childs.Fd()), opt)
	if err == nil {
		c.raw, err = sock.SyscallConn()
	}
	if err != nil {
		sock.Close()
		return nil, err
	}
	c.machine = m
	go func() {
		defer close(c.free)
		defer childs.Close()
		if errno := m.start(); errno != 0 {
			unborn(childs, errno)
		}
	}()
	if err := c.birth(); err != nil {
		sock.Close()
		return nil, err
	}
	c.Pid, c.PidFD = int(m.pid), int(m.pidfd)
	for i := range p.Steps {
		if p.Steps[i].Fork {
			c.fork = i
		}
	}
	return c, nil
}

// unborn tells in the child's place that there is none.
func unborn(childs *os.File, errno syscall.Errno) {
	report := binary.NativeEndian.AppendUint32(nil, reportUnborn)
	report = binary.NativeEndian.AppendUint32(report, 0)
	report = binary.NativeEndian.AppendUint32(report, uint32(errno))
	// The socket is new and open at both ends.
	_, _ = childs.Write(report)
}

// birth waits for the first report, which tells whether there is a child. One
// that was killed before it could report is left to Next.
func (c *Child) birth() error {
	_, err := c.receive()
	if errors.Is(err, ErrDied) {
		return nil
	}
	return err
}

// socketPair returns the caller's end, which does not block, and the child's, which does.
func socketPair() (ours, childs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(pair[0], true); err != nil {
		unix.Close(pair[0])
		unix.Close(pair[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(pair[0]), "child"), os.NewFile(uintptr(pair[1]), "parent"), nil
}

// WriteIDMaps writes the maps of the user namespace in which the child was
// born. The child needs it before it is released from its first gate.
func (c *Child) WriteIDMaps() error {
	if c.plan.Clone.Flags&unix.CLONE_NEWUSER == 0 {
		return nil
	}
	for _, m := range []struct {
		name  string
		lines []plan.IDMap
	}{{"uid_map", c.plan.Clone.UIDMap}, {"gid_map", c.plan.Clone.GIDMap}} {
		if len(m.lines) == 0 {
			continue
		}
		if err := writeProc(c.Pid, m.name, m.lines); err != nil {
			return c.fail("write "+m.name, err)
		}
	}
	return nil
}

func writeProc(pid int, name string, lines []plan.IDMap) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/%s", pid, name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "%d %d %d\n", l.ContainerID, l.HostID, l.Size)
	}
	_, err = unix.Write(fd, []byte(b.String()))
	return err
}

func (c *Child) fail(step string, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("%s: %s: %w", c.plan.Name, step, err)
	}
	return &StepError{Plan: c.plan.Name, Index: -1, Step: step, Err: errno}
}

// Next waits for the child's next event. A failed step is a [*StepError]; a
// child that ended otherwise is [ErrDied]. After an error or a last event
// there are no more.
func (c *Child) Next() (Event, error) {
	if c.fork < 0 && len(c.waiting) > 0 {
		ev := c.waiting[0]
		c.waiting = c.waiting[1:]
		return ev, nil
	}
	if c.fork < 0 && c.failed != nil {
		return Event{}, c.failed
	}
	for {
		ev, err := c.receive()
		var failed *StepError
		switch {
		case c.fork >= 0 && errors.As(err, &failed) && failed.Index > c.fork:
			c.failed = failed // once it is known which process that was
		case err != nil && c.failed != nil:
			return Event{}, c.failed
		case err != nil:
			return Event{}, err
		case ev.Kind == Forked:
			c.fork = -1
			return ev, nil
		case c.fork >= 0 && overtook(ev, c.fork):
			// The forked process was faster than the one that reports it.
			c.waiting = append(c.waiting, ev)
		default:
			return ev, nil
		}
	}
}

// overtook says whether an event comes from after the fork. A descriptor
// that was passed does not tell, and is not bound to a process.
func overtook(ev Event, fork int) bool { return ev.Kind == Waiting && ev.Step > fork }

func (c *Child) receive() (Event, error) {
	for {
		var buf [reportWords*4 + 1]byte
		var oob [64]byte
		var n, oobn int
		var err error
		rerr := c.raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), buf[:], oob[:], unix.MSG_CMSG_CLOEXEC)
			return err != unix.EAGAIN
		})
		switch {
		case rerr != nil:
			return Event{}, fmt.Errorf("%s: receive report: %w", c.plan.Name, rerr)
		case err == unix.EINTR, err == unix.ECONNRESET:
			// A child that ended without reading what it was sent is reported
			// once, before its last words.
			continue
		case err != nil:
			return Event{}, fmt.Errorf("%s: receive report: %w", c.plan.Name, err)
		case n == 0 && oobn == 0:
			return c.closed()
		case oobn > 0:
			return c.passed(oob[:oobn])
		case n != reportWords*4:
			return Event{}, fmt.Errorf("%s: %w: %d bytes", c.plan.Name, ErrReport, n)
		}
		ev, done, err := c.report(buf[:n])
		if err != nil || done {
			return ev, err
		}
	}
}

// report reads a report; one that is no event by itself is not done.
func (c *Child) report(b []byte) (ev Event, done bool, err error) {
	var w [reportWords]uint32
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	switch w[0] {
	case reportBorn:
		return Event{}, true, nil
	case reportUnborn:
		return Event{}, false, &StepError{Plan: c.plan.Name, Index: -1, Step: "clone", Err: syscall.Errno(w[2])}
	}
	index := int(w[1])
	if index >= len(c.plan.Steps) {
		return Event{}, false, fmt.Errorf("%s: %w: step %d", c.plan.Name, ErrReport, index)
	}
	if w[0] != reportForked { // which may come after the report of execve
		c.last = w[0]
	}
	switch w[0] {
	case reportFailed:
		return Event{}, false, &StepError{Plan: c.plan.Name, Index: index, Step: c.plan.Steps[index].Name, Err: syscall.Errno(w[2])}
	case reportForked:
		return Event{Kind: Forked, Step: index, Pid: int(w[2])}, true, nil
	case reportWaiting:
		return Event{Kind: Waiting, Step: index}, true, nil
	case reportExec, reportEnd:
		return Event{}, false, nil
	}
	return Event{}, false, fmt.Errorf("%s: %w: kind %d", c.plan.Name, ErrReport, w[0])
}

func (c *Child) closed() (Event, error) {
	switch {
	case c.fork >= 0:
	case c.last == reportExec:
		c.over = true
		return Event{Kind: Executed}, nil
	case c.last == reportEnd:
		c.over = true
		return Event{Kind: Ended}, nil
	}
	return Event{}, fmt.Errorf("%s: %w", c.plan.Name, ErrDied)
}

func (c *Child) passed(oob []byte) (Event, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return Event{}, fmt.Errorf("%s: %w: control message", c.plan.Name, ErrReport)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return Event{}, fmt.Errorf("%s: %w: descriptors", c.plan.Name, ErrReport)
	}
	return Event{Kind: Passed, FD: fds[0]}, nil
}

// Release lets a child that is Waiting go on.
func (c *Child) Release() error {
	var err error
	if cerr := c.raw.Control(func(fd uintptr) {
		err = unix.Sendto(int(fd), []byte{1}, unix.MSG_NOSIGNAL, nil)
	}); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%s: release child: %w", c.plan.Name, err)
	}
	return nil
}

// Abort makes sure that the child never reaches execve: it is killed, and a
// process that it forked meanwhile dies at its next report. Next then
// returns an error. Abort may be called while another goroutine is in Next.
func (c *Child) Abort() {
	// An error means that the child is gone already.
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	_ = unix.PidfdSendSignal(c.PidFD, unix.SIGKILL, nil, 0)
}

// Close releases the socket to the child, not PidFD, and is called once. It does not wait for a
// child that was aborted and hangs in the kernel.
func (c *Child) Close() {
	c.sock.Close()
	if !c.over {
		return
	}
	<-c.free
	if c.memory != nil {
		c.memory.Put(c.machine)
	}
}
