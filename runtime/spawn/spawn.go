package spawn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
)

// Options are the settings of its parent that a child does not inherit.
type Options struct {
	// NoFile is the limit on open files that the child gets at the
	// [plan.ArgNoFile] of its plan, or else before its first step; nil keeps
	// the caller's, which Go raises at start.
	NoFile *unix.Rlimit
	// OOMScoreAdj is written to the child's oom_score_adj before its first
	// step; empty keeps the caller's.
	OOMScoreAdj string
	// Text is the memory of this program's code, see [FindText]. It is looked
	// up if empty.
	Text Text
	// Cloner clones the child, so that it does not copy and close all
	// descriptors of the caller; nil clones it on the calling thread.
	Cloner *Cloner
}

// EventKind is the kind of an event of a child.
type EventKind uint8

// The kinds of event.
const (
	// Forked: the plan continues in the process Pid, also a child of the
	// caller; the previous one exits by itself and must be reaped.
	Forked EventKind = iota + 1
	// Waiting: the child waits at gate Step until [Child.Release].
	Waiting
	// Passed: the child sent the descriptor FD, which the receiver owns.
	Passed
	// Executed: execve succeeded. It is the last event.
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

// Child is a process that runs a plan.
type Child struct {
	// Pid is the process that was cloned, and PidFD its descriptor. Both belong
	// to the caller of Start, which must reap the process.
	Pid, PidFD int

	plan *plan.Plan
	sock *os.File // nonblocking, so that a wait occupies no thread
	raw  syscall.RawConn

	runner  int      // PID of the process that runs the plan now
	fork    int      // index of the step that forks, -1 without or after it
	exposed bool     // after an exposed fork, when others may impersonate the runner
	last    uint32   // the runner's last report
	early   []packet // reports that arrived before that of the fork
	foreign int      // reports from processes outside the plan
}

// A process that others see can be made to pass its socket to them. What they
// send is dropped, and costs them more than the caller: so many reports that a
// start is abandoned take some hundred milliseconds.
const (
	maxForeign = 1 << 16
	// maxEarly is how many reports are kept that arrive before that of the fork.
	maxEarly = 256
)

// Prepared is a child before the clone.
type Prepared struct {
	plan         *plan.Plan
	program      *compiled
	files        []int // the inputs, then the child's socket
	cloner       *Cloner
	sock, childs *os.File
}

// Prepare lays out a plan for a child. The descriptors in files are the plan's
// inputs and stay the caller's; they must be open until [Prepared.Start] is
// done. One of Start and [Prepared.Close] must be called, once.
func Prepare(p *plan.Plan, files []int, opt Options) (*Prepared, error) {
	sock, childs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("%s: make socket: %w", p.Name, err)
	}

	// In the child the descriptors may have other numbers than here.
	all := append(slices.Clone(files), int(childs.Fd()))
	numbers := all
	if opt.Cloner != nil {
		numbers = opt.Cloner.numbers(len(all))
	}

	program, err := compile(p, numbers[:len(files)], numbers[len(files)], opt)
	if err != nil {
		sock.Close()
		childs.Close()
		return nil, err
	}

	return &Prepared{plan: p, program: program, files: all, cloner: opt.Cloner, sock: sock, childs: childs}, nil
}

// Close releases a child that will not be started.
func (p *Prepared) Close() {
	p.program.arena.release()
	p.sock.Close()
	p.childs.Close()
}

// Start clones the child and lets it run the plan. It never blocks. The caller
// reads the child's events with [Child.Next] until the last and then closes it;
// it must not reap the child before Start has returned.
func (p *Prepared) Start() (*Child, error) {
	raw, err := p.sock.SyscallConn()
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("%s: use socket: %w", p.plan.Name, err)
	}

	c := &Child{plan: p.plan, sock: p.sock, raw: raw, fork: -1}
	withhold(heapAround(c))
	c.Pid, c.PidFD, err = p.clone()
	c.runner = c.Pid
	p.program.arena.release()
	p.childs.Close()
	if err != nil {
		p.sock.Close()
		return nil, fmt.Errorf("%s: clone: %w", p.plan.Name, err)
	}
	if c.Pid < 0 {
		p.sock.Close()
		return nil, &StepError{Plan: p.plan.Name, Index: -1, Step: "clone", Err: syscall.Errno(-c.Pid)}
	}

	for i := range p.plan.Steps {
		if p.plan.Steps[i].Fork {
			c.fork = i
		}
	}

	return c, nil
}

// clone returns the child's PID, or a negative errno, and its pidfd.
func (p *Prepared) clone() (pid, pidfd int, err error) {
	if p.cloner == nil {
		pid, pidfd = p.program.m.startHere()
		return pid, pidfd, nil
	}
	return p.cloner.start(p.program.m, p.files)
}

// Start is [Prepare] and [Prepared.Start] in one.
func Start(p *plan.Plan, files []int, opt Options) (*Child, error) {
	prepared, err := Prepare(p, files, opt)
	if err != nil {
		return nil, err
	}
	return prepared.Start()
}

// socketPair returns the caller's end, which does not block, and the child's, which does.
func socketPair() (ours, childs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}

	err = unix.SetNonblock(pair[0], true)
	if err == nil {
		// The kernel reports the sender of each report.
		err = unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}
	if err != nil {
		unix.Close(pair[0])
		unix.Close(pair[1])
		return nil, nil, err
	}

	return os.NewFile(uintptr(pair[0]), "child"), os.NewFile(uintptr(pair[1]), "parent"), nil
}

// WriteIDMaps writes the maps of the user namespace that the child was cloned
// into. It must be called before the child is released from its first gate.
func (c *Child) WriteIDMaps() error {
	if c.plan.Clone.Flags&unix.CLONE_NEWUSER == 0 {
		return nil
	}
	for _, m := range []struct {
		name  string
		lines []specs.LinuxIDMapping
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

func writeProc(pid int, name string, lines []specs.LinuxIDMapping) error {
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

// packet is a report as it was received.
type packet struct {
	pid                int // the sender's
	kind, index, value uint32
	fd                 int   // a descriptor that was passed, -1 without one
	bad                error // why it is invalid; its sender decides what that means
}

// Next waits for the child's next event. A failed step is a [*StepError]; a
// child that exited otherwise is [ErrDied]. After an error or a last event
// there are no more.
func (c *Child) Next() (Event, error) {
	for {
		p, ended, err := c.take()
		switch {
		case err != nil:
			return Event{}, err
		case ended:
			return c.closed()
		}

		if p.pid != c.runner {
			if err := c.setAside(p); err != nil {
				return Event{}, err
			}
			continue
		}

		ev, done, err := c.report(p)
		if err != nil || done {
			return ev, err
		}
	}
}

// take returns the next report, ended if there will be no more.
func (c *Child) take() (p packet, ended bool, err error) {
	if c.fork < 0 && len(c.early) > 0 {
		p, c.early = c.early[0], c.early[1:]
		return p, false, nil
	}
	return c.receive()
}

// setAside keeps a report until its sender is known: the forked process may be
// faster than the one that reports it. Once the fork is reported, those of
// other processes are dropped.
func (c *Child) setAside(p packet) error {
	// An exposed process passes no descriptor: it is not the sender of one.
	stray := c.fork >= 0 && p.fd >= 0 && c.plan.Steps[c.fork].Exposed
	if c.fork >= 0 && !stray && len(c.early) < maxEarly {
		c.early = append(c.early, p)
		return nil
	}

	p.drop()
	if c.foreign++; c.foreign > maxForeign {
		return fmt.Errorf("%s: %w: from process %d, which does not belong to the plan", c.plan.Name, ErrReport, p.pid)
	}

	return nil
}

func (p packet) drop() {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}

// receive waits for a packet.
func (c *Child) receive() (p packet, ended bool, err error) {
	var (
		buf     [reportWords*4 + 1]byte
		oob     [128]byte
		n, oobn int
		end     bool
	)

	for {
		var err error
		rerr := c.raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), buf[:], oob[:], unix.MSG_CMSG_CLOEXEC)
			return err != unix.EAGAIN
		})

		switch {
		case rerr != nil:
			return packet{}, false, fmt.Errorf("%s: receive report: %w", c.plan.Name, rerr)
		case err == unix.EINTR, err == unix.ECONNRESET:
			// A child that exited with unread data is reported once, as
			// ECONNRESET before its last report.
			continue
		case err != nil:
			return packet{}, false, fmt.Errorf("%s: receive report: %w", c.plan.Name, err)
		case n == 0 && oobn == 0 && !end:
			// The kernel looks for a packet first and for the end of the connection
			// then, and reports the end if the last packet and the close come in
			// between. After the end no more can come, so a second look is certain.
			end = true
			continue
		case n == 0 && oobn == 0:
			return packet{}, true, nil
		}

		return parsePacket(buf[:n], oob[:oobn]), false, nil
	}
}

// parsePacket reads a packet with its control messages. At most one descriptor
// is accepted; a packet with one only carries it and is not a report.
func parsePacket(b, oob []byte) packet {
	p := packet{fd: -1}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		p.bad = fmt.Errorf("%w: control message", ErrReport)
		return p
	}

	for i := range msgs {
		if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			p.pid = int(cred.Pid)
			continue
		}

		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}

		for _, fd := range fds {
			p.drop()
			p.fd = fd
		}
	}

	if p.fd >= 0 {
		return p
	}
	if len(b) != reportWords*4 {
		p.bad = fmt.Errorf("%w: %d bytes", ErrReport, len(b))
		return p
	}

	for i, w := range []*uint32{&p.kind, &p.index, &p.value} {
		*w = binary.NativeEndian.Uint32(b[4*i:])
	}

	return p
}

// report handles a report of the process that runs the plan; done is false if
// it is not an event by itself.
func (c *Child) report(p packet) (ev Event, done bool, err error) {
	if p.bad != nil {
		p.drop()
		return Event{}, false, fmt.Errorf("%s: %w", c.plan.Name, p.bad)
	}
	if p.fd >= 0 {
		if c.exposed {
			p.drop()
			return Event{}, false, fmt.Errorf("%s: %w: a descriptor from an exposed process", c.plan.Name, ErrReport)
		}
		return Event{Kind: Passed, FD: p.fd}, true, nil
	}

	index := int(int32(p.index))
	if index == int(stepForget) && p.kind == reportFailed {
		return Event{}, false, &StepError{Plan: c.plan.Name, Index: -1, Step: "forget memory of parent", Err: syscall.Errno(p.value)}
	}
	if index < 0 || index >= len(c.plan.Steps) {
		return Event{}, false, fmt.Errorf("%s: %w: step %d", c.plan.Name, ErrReport, index)
	}

	c.last = p.kind
	switch {
	case p.kind == reportFailed:
		return Event{}, false, &StepError{Plan: c.plan.Name, Index: index, Step: c.plan.Steps[index].Name, Err: syscall.Errno(p.value)}
	case p.kind == reportForked && index == c.fork:
		c.runner, c.fork, c.exposed = int(p.value), -1, c.plan.Steps[index].Exposed
		return Event{Kind: Forked, Step: index, Pid: c.runner}, true, nil
	case p.kind == reportWaiting && !c.exposed:
		return Event{Kind: Waiting, Step: index}, true, nil
	case p.kind == reportExec, p.kind == reportEnd:
		return Event{}, false, nil
	}

	return Event{}, false, fmt.Errorf("%s: %w: kind %d", c.plan.Name, ErrReport, p.kind)
}

// closed returns the event of a closed socket, which no process holds any more.
func (c *Child) closed() (Event, error) {
	switch {
	case c.fork >= 0:
	case c.last == reportExec:
		return Event{Kind: Executed}, nil
	case c.last == reportEnd:
		return Event{Kind: Ended}, nil
	}
	return Event{}, fmt.Errorf("%s: %w", c.plan.Name, ErrDied)
}

// Release lets a Waiting child continue.
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
// process that it forked meanwhile exits at its next report. Next then returns
// an error. Abort may be called while another goroutine is in Next.
func (c *Child) Abort() {
	// An error means that the child is dead already.
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	_ = unix.PidfdSendSignal(c.PidFD, unix.SIGKILL, nil, 0)
}

// Close releases the socket to the child, not PidFD, and is called once.
func (c *Child) Close() { c.sock.Close() }
