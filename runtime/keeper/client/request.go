package client

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/crilog"
	"crisp/runtime/keeper/spool"
	"crisp/runtime/plan"
	"crisp/runtime/sealed"
	"crisp/runtime/wire"
)

// Kind is the kind of an entry.
type Kind = wire.Kind

// The kinds of entries.
const (
	Sandbox   = wire.Sandbox
	Container = wire.Container
	Exec      = wire.Exec
)

// Request is a plan to run and what the keeper does around it. Its files stay
// the caller's and may be closed once Start has returned.
type Request struct {
	ID   string
	Kind Kind
	Plan *plan.Plan
	// Files are the plan's inputs, one each. What becomes a standard stream
	// should be in blocking mode, which os.Pipe does not leave it in.
	Files []*os.File
	// Log makes the keeper write the output of a container.
	Log *LogConfig
	// Terminal: the plan passes the master end of a terminal.
	Terminal bool
	// Hold makes the keeper keep the child's new namespaces when the child
	// waits at its last gate. The child is killed there, unless Pause is set.
	Hold, Pause bool
	// Keep lists descriptors that are kept under the ID until it is forgotten.
	Keep []Named
	// Gate is called while the child waits at its first gate; an error kills the child.
	Gate func(pid int) error
	// Ask is called at each gate of the plan that asks, see [plan.AskDaemon]. Its
	// context ends if the start has failed meanwhile; an error kills the child.
	Ask func(ctx context.Context, w Waiting) error
	// Within marks a request that is made by the Ask of another one.
	Within bool
}

// Waiting is a child at a gate that asks.
type Waiting struct {
	// Step is the index of the step.
	Step int
	// Pid is the child, and PidFD its descriptor, which is closed afterwards.
	Pid   int
	PidFD *os.File
}

// LogConfig says where a container's output goes.
type LogConfig struct {
	// Stdout and Stderr are the container's streams. With a terminal Stdout is
	// made by [NewTerminalStream] and there is no Stderr.
	Stdout, Stderr *Stream
	// Out is the log, opened for appending.
	Out *os.File
	// Former are files that an earlier keeper may have logged to; for Adopt.
	Former []*os.File
	// MaxLine is where lines are split; 0 means 16 KiB.
	MaxLine int
}

// Stream is one output of a container on its way to the log. With a copy of it
// another keeper can continue without loss after one has died.
type Stream struct {
	// Pipe is the read end of the container's pipe or, for a terminal, a pipe
	// between it and the spool.
	Pipe *os.File
	// Spool is what was read and is not yet in the log; see package spool.
	Spool *os.File
}

// NewStream makes a stream of the read end of a pipe, for lines of maxLine
// bytes as in [LogConfig].
func NewStream(pipe *os.File, maxLine int) (*Stream, error) {
	f, err := spool.Create(crilog.MaxLine(maxLine))
	if err != nil {
		return nil, err
	}
	return &Stream{Pipe: pipe, Spool: f}, nil
}

// NewTerminalStream makes a stream for a terminal.
func NewTerminalStream(maxLine int) (*Stream, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer wire.CloseAll(fds[:])

	// One descriptor is enough for both directions.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fds[0]), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open pipe in both directions: %w", err)
	}

	pipe := os.NewFile(uintptr(fd), "relay")
	st, err := NewStream(pipe, maxLine)
	if err != nil {
		pipe.Close()
	}

	return st, err
}

// Close closes a stream's files; nil has none.
func (s *Stream) Close() {
	if s != nil {
		closeFiles(s.Pipe, s.Spool)
	}
}

// Close closes all files; nil has none.
func (l *LogConfig) Close() {
	if l == nil {
		return
	}
	l.Stdout.Close()
	l.Stderr.Close()
	closeFiles(l.Out)
	closeFiles(l.Former...)
}

// Named is a descriptor with the name under which it is kept.
type Named struct {
	Name string
	File *os.File
}

// Started is a plan that has run. Its files are the caller's.
type Started struct {
	// Pid is the process's PID, 0 if it was killed at the gate of a held sandbox.
	Pid   int
	PidFD *os.File
	// Terminal is the master end of the terminal, nil without one.
	Terminal *os.File
	// Namespaces are those of a held sandbox that are not the host's: user,
	// net, ipc, uts, mnt, pid.
	Namespaces map[string]*os.File
	StartedAt  time.Time
}

// Close closes all files.
func (s *Started) Close() {
	closeFiles(s.PidFD, s.Terminal)
	for _, f := range s.Namespaces {
		f.Close()
	}
}

// Exit is the exit of a process.
type Exit struct {
	ID   string
	Kind Kind
	Pid  int
	// Code is the exit code, or 128 plus the signal's number.
	Code   int
	Signal int
	At     time.Time
	// OOMKills counts the OOM kills in a container's cgroup, 0 on cgroup v1 or
	// if unknown.
	OOMKills uint64
}

// Entry is what the keeper holds under an ID. Its files are the caller's.
type Entry struct {
	ID   string
	Kind Kind
	Started
	// Log is the present log with the streams that have not ended, nil without
	// one or once the process has ended.
	Log *LogConfig
	// Kept are the kept descriptors by name.
	Kept map[string]*os.File
	// Dropped counts log lines that could not be written.
	Dropped uint64
	// Exit is set once the process has exited. Its event may follow.
	Exit *Exit
}

// Close closes all files.
func (e *Entry) Close() {
	e.Started.Close()
	e.Log.Close()
	for _, f := range e.Kept {
		f.Close()
	}
}

// Adoption is an entry of a keeper that died, as its daemon knows it from
// [Started] and from its Request.
type Adoption struct {
	ID   string
	Kind Kind
	Started
	// Log is as it was at the start, with the present log file.
	Log  *LogConfig
	Keep []Named
}

func (a *Adoption) message() (m wire.Adopt, out outgoing) {
	m = wire.Adopt{ID: a.ID, Kind: a.Kind, Started: wire.Started{Pid: int64(a.Pid), At: a.StartedAt.UnixNano()}}
	if a.PidFD != nil {
		out.add(wire.PidFD, a.PidFD)
	}
	if a.Terminal != nil {
		out.add(wire.Terminal, a.Terminal)
	}
	for name, f := range a.Namespaces {
		out.add(wire.Namespace.Of(name), f)
	}

	m.MaxLine = out.addLog(a.Log)
	out.addKept(a.Keep)
	return m, out
}

// message turns the request into its message and files.
func (r *Request) message() (m wire.Start, out outgoing, err error) {
	if r.Plan == nil {
		return m, out, fmt.Errorf("%w: no plan", ErrInvalid)
	}
	if len(r.Files) != len(r.Plan.Inputs) {
		return m, out, fmt.Errorf("%w: %d files for %d inputs", ErrInvalid, len(r.Files), len(r.Plan.Inputs))
	}

	m = wire.Start{
		ID: r.ID, Kind: r.Kind,
		Terminal: r.Terminal, Hold: r.Hold, Pause: r.Pause, Gate: r.Gate != nil,
	}
	if m.Gate && !hasGate(r.Plan) {
		return m, out, fmt.Errorf("%s: %w", r.Plan.Name, ErrNoGate)
	}

	if r.Ask == nil && asks(r.Plan) {
		return m, out, fmt.Errorf("%s: %w: its hooks are not run", r.Plan.Name, ErrInvalid)
	}

	for _, f := range r.Files {
		out.add(wire.Input, f)
	}
	m.MaxLine = out.addLog(r.Log)
	out.addKept(r.Keep)
	if out.err != nil {
		return m, out, out.err
	}

	return m, out, out.addPlan(r.Plan)
}

func asks(p *plan.Plan) bool {
	return slices.ContainsFunc(p.Steps, func(s plan.Step) bool { return s.Asks() })
}

func hasGate(p *plan.Plan) bool {
	for i := range p.Steps {
		for j := range p.Steps[i].Args {
			if p.Steps[i].Args[j].Kind == plan.ArgSync {
				return true
			}
		}
	}
	return false
}

// sealedFile returns a descriptor of an unchangeable memory file with the given content.
func sealedFile(name string, data []byte) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("make memfd: %w", err)
	}

	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("write memfd: %w", err)
		}
		data = data[n:]
	}

	if err := sealed.Seal(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
