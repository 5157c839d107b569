package wire

import (
	"errors"
	"fmt"
	"math"
	"syscall"

	"golang.org/x/sys/unix"

	"crisp/runtime/spawn"
	"crisp/runtime/wire/pack"
)

// Version is the version of the protocol.
const Version = 6

// Kind is the kind of an entry.
type Kind uint8

// The kinds of entries.
const (
	Sandbox Kind = iota + 1
	Container
	Exec
)

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case Sandbox:
		return "sandbox"
	case Container:
		return "container"
	case Exec:
		return "exec"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Message is one of the messages of this package.
type Message interface {
	kind() byte
	put(*pack.Writer)
}

// The types of packet.
const (
	typeMore byte = iota
	typeHello
	typeStart
	typeProceed
	typeCancel
	typeList
	typeReopen
	typeAttach
	typeCloseKept
	typeForget
	typeDone
	typeFail
	typeWaiting
	typeStarted
	typeEntry
	typeExited
	typeAdopt
	typeUpgrade
	typeReplace
)

// maxText bounds the text of an error.
const maxText = 8 << 10

// Hello opens a connection in both directions. Its form never changes, nor that
// of [Fail], so that every version understands why another disconnects.
type Hello struct{ Version uint64 }

// Upgrade is sent in place of Hello. Its form never changes either, so that a
// keeper of any version can be replaced: unlike all other messages it does not
// carry the role of its file, which is always [Program]. If the connection ends
// without a reply the program runs.
type Upgrade struct{}

// Start requests that a plan be run.
type Start struct {
	ID   string
	Kind Kind
	// Terminal: the plan passes a terminal's master end. The pipe of stdout is
	// then the keeper's own, which the output passes through.
	Terminal bool
	// Hold keeps the namespaces of a sandbox; Pause its process too.
	Hold, Pause bool
	// Gate requests Waiting and Proceed at the plan's first gate.
	Gate bool
	// MaxLine is where log lines are split, 0 for the default.
	MaxLine int64
}

// Adopt hands over an entry of another keeper.
type Adopt struct {
	ID      string
	Kind    Kind
	Started Started
	MaxLine int64
}

// Proceed is the reply to Waiting.
type Proceed struct{ OK bool }

// Cancel cancels a start.
type Cancel struct{}

// List requests all entries.
type List struct{}

// Reopen continues a log in another file, its only file.
type Reopen struct{ ID string }

// OutputLost is the mode that the keeper gives a pipe of [Attach] whose reader
// was too slow, before it closes it; others keep their mode.
const OutputLost = 0

// Attach copies a container's output to the sinks of its streams.
type Attach struct{ ID string }

// CloseKept closes one kept descriptor.
type CloseKept struct{ ID, Name string }

// Replace makes another child of the keeper's the process of an ID, with what is held
// for it. It was cloned by the present one, which has no output, to be its sibling.
type Replace struct {
	ID      string
	Pid     int64
	MaxLine int64 // as in [Start]
}

// Forget drops an ID that has no living process.
type Forget struct{ ID string }

// Done is success.
type Done struct{}

// Waiting reports that a child waits at its first gate or, if it asks, at that
// of a step.
type Waiting struct {
	Pid  int64
	Asks bool
	Step int64
}

// Started reports that a plan ran.
type Started struct {
	Pid int64 // 0 without a process
	At  int64 // nanoseconds since 1970
}

// Entry is what is held under one ID.
type Entry struct {
	ID      string
	Kind    Kind
	Started Started
	// Dropped counts log lines that could not be written.
	Dropped uint64
	Exit    *Exited
}

// Exited reports that a process exited and that its output is logged.
type Exited struct {
	ID     string
	Kind   Kind
	Pid    int64
	Code   int64
	Signal int64
	At     int64 // nanoseconds since 1970
	// OOMKills counts the OOM kills in its cgroup, 0 if unknown.
	OOMKills int64
}

func (Hello) kind() byte     { return typeHello }
func (Start) kind() byte     { return typeStart }
func (Adopt) kind() byte     { return typeAdopt }
func (Proceed) kind() byte   { return typeProceed }
func (Cancel) kind() byte    { return typeCancel }
func (List) kind() byte      { return typeList }
func (Reopen) kind() byte    { return typeReopen }
func (Attach) kind() byte    { return typeAttach }
func (CloseKept) kind() byte { return typeCloseKept }
func (Forget) kind() byte    { return typeForget }
func (Done) kind() byte      { return typeDone }
func (Fail) kind() byte      { return typeFail }
func (Waiting) kind() byte   { return typeWaiting }
func (Started) kind() byte   { return typeStarted }
func (Entry) kind() byte     { return typeEntry }
func (Exited) kind() byte    { return typeExited }
func (Upgrade) kind() byte   { return typeUpgrade }
func (Replace) kind() byte   { return typeReplace }

func (m Hello) put(w *pack.Writer)   { w.Uint(m.Version) }
func (m Proceed) put(w *pack.Writer) { w.Bool(m.OK) }
func (Cancel) put(*pack.Writer)      {}
func (List) put(*pack.Writer)        {}
func (m Reopen) put(w *pack.Writer)  { w.String(m.ID) }
func (m Attach) put(w *pack.Writer)  { w.String(m.ID) }
func (m Forget) put(w *pack.Writer)  { w.String(m.ID) }
func (Done) put(*pack.Writer)        {}
func (Upgrade) put(*pack.Writer)     {}

func (m Waiting) put(w *pack.Writer) {
	w.Int(m.Pid)
	w.Bool(m.Asks)
	w.Int(m.Step)
}

func (m Replace) put(w *pack.Writer) {
	w.String(m.ID)
	w.Int(m.Pid)
	w.Int(m.MaxLine)
}

func (m CloseKept) put(w *pack.Writer) {
	w.String(m.ID)
	w.String(m.Name)
}

func (m Start) put(w *pack.Writer) {
	w.String(m.ID)
	w.Uint(uint64(m.Kind))
	for _, b := range []bool{m.Terminal, m.Hold, m.Pause, m.Gate} {
		w.Bool(b)
	}
	w.Int(m.MaxLine)
}

func takeStart(r *pack.Reader) Start {
	return Start{
		ID: r.String(), Kind: takeKind(r),
		Terminal: r.Bool(), Hold: r.Bool(), Pause: r.Bool(), Gate: r.Bool(), MaxLine: r.Int(),
	}
}

func (m Adopt) put(w *pack.Writer) {
	w.String(m.ID)
	w.Uint(uint64(m.Kind))
	m.Started.put(w)
	w.Int(m.MaxLine)
}

func takeAdopt(r *pack.Reader) Adopt {
	return Adopt{ID: r.String(), Kind: takeKind(r), Started: takeStarted(r), MaxLine: r.Int()}
}

func (m Started) put(w *pack.Writer) {
	w.Int(m.Pid)
	w.Int(m.At)
}

func takeStarted(r *pack.Reader) Started { return Started{Pid: r.Int(), At: r.Int()} }

func (m Entry) put(w *pack.Writer) {
	w.String(m.ID)
	w.Uint(uint64(m.Kind))
	m.Started.put(w)
	w.Uint(m.Dropped)
	w.Bool(m.Exit != nil)
	if m.Exit != nil {
		m.Exit.put(w)
	}
}

func takeEntry(r *pack.Reader) Entry {
	e := Entry{ID: r.String(), Kind: takeKind(r), Started: takeStarted(r), Dropped: r.Uint()}
	if r.Bool() {
		x := takeExited(r)
		e.Exit = &x
	}
	return e
}

func (m Exited) put(w *pack.Writer) {
	w.String(m.ID)
	w.Uint(uint64(m.Kind))
	for _, v := range []int64{m.Pid, m.Code, m.Signal, m.At, m.OOMKills} {
		w.Int(v)
	}
}

func takeExited(r *pack.Reader) Exited {
	return Exited{ID: r.String(), Kind: takeKind(r), Pid: r.Int(), Code: r.Int(), Signal: r.Int(), At: r.Int(), OOMKills: r.Int()}
}

func takeKind(r *pack.Reader) Kind { return Kind(min(r.Uint(), math.MaxUint8)) }

// decode reads the message in a packet of the given type, and the roles of the
// n files that came with it, whose descriptors are to be filled in.
func decode(typ byte, payload []byte, n int) (m Message, files Files, err error) {
	r := pack.NewReader(payload)
	switch typ {
	case typeHello:
		m = Hello{Version: r.Uint()}
	case typeStart:
		m = takeStart(r)
	case typeAdopt:
		m = takeAdopt(r)
	case typeProceed:
		m = Proceed{OK: r.Bool()}
	case typeCancel:
		m = Cancel{}
	case typeList:
		m = List{}
	case typeReopen:
		m = Reopen{ID: r.String()}
	case typeAttach:
		m = Attach{ID: r.String()}
	case typeCloseKept:
		m = CloseKept{ID: r.String(), Name: r.String()}
	case typeForget:
		m = Forget{ID: r.String()}
	case typeDone:
		m = Done{}
	case typeFail:
		m = takeFail(r)
	case typeWaiting:
		m = Waiting{Pid: r.Int(), Asks: r.Bool(), Step: r.Int()}
	case typeStarted:
		m = takeStarted(r)
	case typeEntry:
		m = takeEntry(r)
	case typeExited:
		m = takeExited(r)
	case typeReplace:
		m = Replace{ID: r.String(), Pid: r.Int(), MaxLine: r.Int()}
	case typeUpgrade:
		m = Upgrade{}
	default:
		return nil, nil, fmt.Errorf("%w: packet type %d", ErrProtocol, typ)
	}

	switch {
	case typ == typeUpgrade:
		files = make(Files, n)
		for i := range files {
			files[i].Role = Program
		}
	case n > 0:
		files, err = TakeRoles(r)
	}

	if err == nil {
		err = r.Done()
	}
	if err == nil && len(files) != n {
		err = fmt.Errorf("%d roles for %d files", len(files), n)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: packet type %d: %w", ErrProtocol, typ, err)
	}
	return m, files, nil
}

// Fail is an error. The sender makes it with [NewFail]; at the receiver
// errors.Is and errors.As work on it.
type Fail struct {
	Code Code
	Text string
	Step *spawn.StepError
}

// Code identifies errors across the socket.
type Code uint8

// codes lists the errors that survive the socket, sentinels and exhausted
// resources; an error's code is its index plus one, and 0 is any other error.
func codes() []error {
	return []error{
		ErrVersion, ErrExists, ErrNotFound, ErrRunning, ErrNotRunning, ErrInvalid, ErrCanceled, spawn.ErrDied,
		unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EAGAIN, unix.ENOSPC, unix.EROFS,
	}
}

// NewFail describes err for the peer.
func NewFail(err error) Fail {
	f := Fail{Text: err.Error()}
	if len(f.Text) > maxText {
		f.Text = f.Text[:maxText] + "..."
	}

	var step *spawn.StepError
	if errors.As(err, &step) {
		f.Step = step
	}

	for i, known := range codes() {
		if errors.Is(err, known) {
			f.Code = Code(i + 1)
			break
		}
	}

	return f
}

// Error returns the text of the error at its origin.
func (f Fail) Error() string { return f.Text }

// Unwrap returns the failed step or the known error that was the cause, nil for neither.
func (f Fail) Unwrap() error {
	if f.Step != nil {
		return f.Step
	}
	if list := codes(); f.Code > 0 && int(f.Code) <= len(list) {
		return list[f.Code-1]
	}
	return nil
}

func (f Fail) put(w *pack.Writer) {
	w.Uint(uint64(f.Code))
	w.String(f.Text)
	w.Bool(f.Step != nil)
	if s := f.Step; s != nil {
		w.String(s.Plan)
		w.Int(int64(s.Index))
		w.String(s.Step)
		w.Uint(uint64(s.Err))
	}
}

func takeFail(r *pack.Reader) Fail {
	f := Fail{Code: Code(min(r.Uint(), math.MaxUint8)), Text: r.String()}
	if r.Bool() {
		f.Step = &spawn.StepError{Plan: r.String(), Index: int(r.Int()), Step: r.String(), Err: syscall.Errno(r.Uint())}
	}
	return f
}
