package keeper

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/spawn"
	"crisp/runtime/wire"
)

// reapTime is how long the reply to a failed start waits for its processes to
// be reaped; only one stuck in the kernel takes longer.
const reapTime = 2 * time.Second

// start is a request to run a plan.
type start struct {
	s     *session
	k     *keeper
	seq   uint32
	msg   wire.Start
	files wire.Files // not yet handed on; closed at the end

	decoder *plan.Decoder
	plan    *plan.Plan // uses the decoder's memory
	entry   *entry
	procs   []*proc // those of the plan; the last runs it
	gates   int     // gates passed
	asked   int     // the step of the last gate at which the daemon was asked, -1 before

	answer chan bool // the reply to Waiting

	mu       sync.Mutex
	child    *spawn.Child // guarded by mu; nil before the clone and once concluded
	canceled bool         // guarded by mu
}

func newStart(s *session, seq uint32, m wire.Start, files wire.Files) *start {
	return &start{s: s, k: s.k, seq: seq, msg: m, files: files, asked: -1, answer: make(chan bool, 1)}
}

// decide lets the child proceed from its first gate, or cancels the start.
func (st *start) decide(ok bool) {
	if ok {
		select {
		case st.answer <- true:
		default:
		}
		return
	}

	st.mu.Lock()
	defer st.mu.Unlock()
	st.canceled = true
	if st.child != nil {
		st.child.Abort()
	}

	select {
	case st.answer <- false:
	default:
	}
}

// run serves the request and replies.
func (st *start) run() {
	defer func() {
		st.files.Close()
		if st.decoder != nil {
			st.k.decoders.Put(st.decoder)
		}
	}()

	if err := st.attempt(); err != nil {
		if st.entry != nil {
			st.k.abandon(st.entry)
		}
		st.s.send(st.seq, wire.NewFail(err), nil)
		return
	}
	st.commit()
}

func (st *start) attempt() error {
	if err := st.parse(); err != nil {
		return err
	}
	e, err := st.k.reserve(st.msg.ID, st.msg.Kind)
	if err != nil {
		return err
	}

	st.entry = e
	if err := st.clone(); err != nil {
		return err
	}

	err = st.follow()
	if err == nil {
		err = st.open()
	}
	return st.conclude(err)
}

// conclude kills the plan's processes if the start failed, and otherwise makes
// the last one the entry's.
func (st *start) conclude(err error) error {
	st.mu.Lock()
	child, canceled := st.child, st.canceled
	st.child = nil
	st.mu.Unlock()
	defer child.Close()

	// A cancellation may have killed a process that had executed its program.
	if err == nil && canceled {
		err = wire.ErrCanceled
	}

	// The status of a cancelled child does not matter, and it may be frozen.
	if errors.Is(err, spawn.ErrDied) && !canceled {
		err = fmt.Errorf("%w: %s", err, st.howDied())
	}
	if err != nil || st.msg.Hold && !st.msg.Pause {
		st.end(child)
	}

	switch {
	case err != nil && canceled:
		return fmt.Errorf("%s: %w", st.plan.Name, wire.ErrCanceled)
	case err != nil:
		return err
	case len(st.procs) > 0:
		last := len(st.procs) - 1
		st.entry.proc = st.procs[last]
		st.entry.held.Add(wire.PidFD, st.procs[last].pidfd)
		for _, p := range st.procs[:last] {
			unix.Close(p.pidfd)
		}
	}

	return nil
}

// howDied describes how the plan's last process exited.
func (st *start) howDied() string {
	p := st.procs[len(st.procs)-1]
	select {
	case <-p.ended:
	case <-time.After(reapTime):
		return "it closed its socket"
	}
	if p.status.Signaled() {
		return "by signal " + strconv.Itoa(int(p.status.Signal()))
	}
	return "with exit code " + strconv.Itoa(p.status.ExitStatus())
}

// parse checks the request and its files, which stay in st.files until open.
func (st *start) parse() error {
	m := &st.msg
	if !wire.ValidID(m.ID) {
		return fmt.Errorf("%w: id %q", wire.ErrInvalid, m.ID)
	}
	if m.Kind < wire.Sandbox || m.Kind > wire.Exec {
		return fmt.Errorf("%w: %v", wire.ErrInvalid, m.Kind)
	}
	if m.Pause && !m.Hold {
		return fmt.Errorf("%w: pause without hold", wire.ErrInvalid)
	}
	if err := m.Check(st.files); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrInvalid, err)
	}

	data, err := readMemfd(st.files.FD(wire.Plan))
	if err != nil {
		return err
	}

	var known bool
	if st.decoder, known = st.k.decoders.Get().(*plan.Decoder); !known {
		st.decoder = new(plan.Decoder)
	}

	if st.plan, err = st.decoder.Decode(data); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrInvalid, err)
	}
	if m.Hold && lastGate(st.plan) < 0 {
		return fmt.Errorf("%w: the plan of a held sandbox has no gate", wire.ErrInvalid)
	}
	return nil
}

func readMemfd(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("read plan: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > plan.MaxEncoded {
		return nil, fmt.Errorf("read plan: %w: %d bytes", wire.ErrInvalid, st.Size)
	}
	data := make([]byte, st.Size)
	n, err := unix.Pread(fd, data, 0)
	if err != nil {
		return nil, fmt.Errorf("read plan: %w", err)
	}
	return data[:n], nil
}

// lastGate returns the index of the plan's last step that waits, or -1.
func lastGate(p *plan.Plan) int {
	last := -1
	for i := range p.Steps {
		for _, a := range p.Steps[i].Args {
			if a.Kind == plan.ArgSync {
				last = i
			}
		}
	}
	return last
}

func forks(p *plan.Plan) bool {
	for i := range p.Steps {
		if p.Steps[i].Fork {
			return true
		}
	}
	return false
}

// clone starts the child and registers it atomically. The locks are held for
// the clone alone, which never blocks: not on the child, which its container
// may stop, nor on its cgroup.
func (st *start) clone() error {
	prepared, err := spawn.Prepare(st.plan, st.files.Of(wire.Input).Numbers(), st.k.opt)
	if err != nil {
		return err
	}

	st.mu.Lock()
	defer st.mu.Unlock()
	if st.canceled {
		prepared.Close()
		return fmt.Errorf("%s: %w", st.plan.Name, wire.ErrCanceled)
	}

	k := st.k
	k.mu.Lock()
	defer k.mu.Unlock()

	// Taken before the clone, so that no exit is earlier.
	st.entry.at = time.Now()
	child, err := prepared.Start()
	if err != nil {
		return err
	}

	p := newProc(child.Pid, child.PidFD)
	k.addLocked(p)
	st.procs = append(st.procs, p)
	if forks(st.plan) {
		k.forking++
	}

	st.child = child

	return nil
}

// follow serves the child's events until it has executed its program or, for a
// held sandbox without a process, until its namespaces are opened.
func (st *start) follow() error {
	forking := forks(st.plan)
	defer func() {
		if forking {
			st.k.mu.Lock()
			st.k.forkDoneLocked()
			st.k.mu.Unlock()
		}
	}()

	if err := st.child.WriteIDMaps(); err != nil {
		return err
	}
	for {
		ev, err := st.child.Next()
		if err != nil {
			return err
		}

		switch ev.Kind {
		case spawn.Forked:
			forking = false
			if err := st.forked(ev.Pid); err != nil {
				return err
			}
		case spawn.Passed:
			if err := st.passed(ev.FD); err != nil {
				return err
			}
		case spawn.Waiting:
			if held, err := st.waiting(ev.Step); held || err != nil {
				return err
			}
		case spawn.Executed:
			return nil
		case spawn.Ended:
			return fmt.Errorf("%s: %w: the plan has no execve", st.plan.Name, wire.ErrInvalid)
		}
	}
}

func (st *start) forked(pid int) error {
	k := st.k
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := k.trackLocked(pid)
	k.forkDoneLocked()
	if err != nil {
		return fmt.Errorf("%s: open pidfd of second process: %w", st.plan.Name, err)
	}
	st.procs = append(st.procs, p)
	return nil
}

func (st *start) passed(fd int) error {
	if !st.msg.Terminal || st.entry.held.Has(wire.Terminal) {
		unix.Close(fd)
		return fmt.Errorf("%s: %w: unexpected descriptor", st.plan.Name, wire.ErrInvalid)
	}
	st.entry.held.Add(wire.Terminal, fd)
	// Both the keeper and the daemon read and write it by polling.
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("%s: use terminal: %w", st.plan.Name, err)
	}
	return nil
}

// waiting serves a child at a gate. held is true if its namespaces are all that
// is needed.
func (st *start) waiting(step int) (held bool, err error) {
	st.gates++
	pid := st.procs[len(st.procs)-1].pid
	switch asks := st.plan.Steps[step].Asks(); {
	case asks && step <= st.asked: // no child that is in order goes back
		return false, fmt.Errorf("%s: %w: step %d again", st.plan.Name, spawn.ErrReport, step)
	case asks:
		st.asked = step
		var child wire.Files
		child.Add(wire.PidFD, st.procs[len(st.procs)-1].pidfd)
		err = st.ask(wire.Waiting{Pid: int64(pid), Asks: true, Step: int64(step)}, child)
	case st.gates == 1 && st.msg.Gate:
		err = st.ask(wire.Waiting{Pid: int64(pid)}, nil)
	}
	if err != nil {
		return false, err
	}
	if st.msg.Hold && step == lastGate(st.plan) {
		list, err := namespacesOf(pid)
		if err != nil {
			return false, fmt.Errorf("%s: %w", st.plan.Name, err)
		}
		st.entry.held = append(st.entry.held, list...)
		if !st.msg.Pause {
			return true, nil
		}
	}

	return false, st.child.Release()
}

// ask waits until the daemon lets a child continue.
func (st *start) ask(m wire.Waiting, child wire.Files) error {
	st.s.send(st.seq, m, child)
	select {
	case ok := <-st.answer:
		if !ok {
			return fmt.Errorf("%s: %w", st.plan.Name, wire.ErrCanceled)
		}
		return nil
	case <-st.s.ended:
		return fmt.Errorf("%s: %w: daemon disconnected", st.plan.Name, wire.ErrCanceled)
	}
}

// namespacesOf opens the namespaces of a process that it does not share with this one.
func namespacesOf(pid int) (list wire.Files, err error) {
	defer func() {
		if err != nil {
			list.Close()
			list = nil
		}
	}()

	for _, name := range []string{"user", "net", "ipc", "uts", "mnt", "pid"} {
		var own unix.Stat_t
		if err := unix.Stat("/proc/self/ns/"+name, &own); err != nil {
			return list, fmt.Errorf("examine own %s namespace: %w", name, err)
		}

		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return list, fmt.Errorf("open %s namespace: %w", name, err)
		}

		list.Add(wire.Namespace.Of(name), fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return list, fmt.Errorf("examine %s namespace: %w", name, err)
		}

		if st.Ino == own.Ino && st.Dev == own.Dev {
			unix.Close(fd)
			list = list[:len(list)-1]
		}
	}

	return list, nil
}

// end kills all processes of the plan and waits until they are reaped.
func (st *start) end(child *spawn.Child) {
	child.Abort()
	late := time.NewTimer(reapTime)
	defer late.Stop()
	for _, p := range st.procs {
		// An error means that it is dead already.
		_ = unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
	}

	for _, p := range st.procs {
		select {
		case <-p.ended:
		case <-late.C:
			late.Reset(0)
		}
		unix.Close(p.pidfd)
	}
	st.procs = nil
}

// open hands the files of the request to the entry.
func (st *start) open() error {
	e, m := st.entry, &st.msg
	if m.Terminal && !e.held.Has(wire.Terminal) {
		return fmt.Errorf("%s: %w: the plan passed no terminal", st.plan.Name, wire.ErrInvalid)
	}
	st.files.TakeAll(wire.Plan, wire.Input).Close()
	if err := st.k.equip(e, &st.files, m.MaxLine, st.procs[len(st.procs)-1].ended); err != nil {
		return fmt.Errorf("%s: %w", st.plan.Name, err)
	}
	return nil
}

// commit publishes the entry and replies. The reply precedes the exit.
func (st *start) commit() {
	k, e := st.k, st.entry
	m, files := k.enter(e)
	st.s.send(st.seq, m, files)
	e.watchMemory()
	k.deposit(e)
	if e.proc != nil {
		k.mu.Lock()
		k.watchLocked(e.proc, e)
		k.mu.Unlock()
	}
}
