package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/crilog"
	"crisp/runtime/keeper/spool"
	"crisp/runtime/wire"
)

const (
	// sinkSize is the pipe size requested for attached readers, sinkPatience
	// how long a container's output waits for a slow one.
	sinkSize     = 1 << 20
	sinkPatience = 20 * time.Millisecond
	// terminalRead is how much is read from a terminal at once, the size of its buffer.
	terminalRead = 4 << 10
	// terminalDrain is how long to wait for the rest of a terminal's output
	// once the process has exited: it passes through a kernel worker.
	terminalDrain = 100 * time.Millisecond
	// hangupRetry is the delay before reading again from a terminal that no
	// process has open: a running container may reopen it.
	hangupRetry = 200 * time.Millisecond
	// trimDelay is how long a spool may keep unused memory.
	trimDelay = time.Second
)

// output moves the output of a container from a pipe or terminal to its log
// and to attached readers.
type output struct {
	k      *keeper
	id     string // of the container
	roles  wire.Stream
	file   *os.File // the pipe or terminal
	raw    syscall.RawConn
	relay  int // the pipe that a terminal's output passes through, -1 without one
	log    *crilog.Log
	exited chan struct{} // closed when the process has exited
	gone   chan struct{} // closed when the entry is released
	pumped bool          // guarded by keeper.mu
	done   chan struct{} // closed at the end of the output

	fdMu    sync.Mutex // held while descriptors are copied or closed
	closed  bool       // guarded by fdMu
	spoolFD int        // never changes

	mu      sync.Mutex // held from a read until its bytes are logged
	spool   *spool.Spool
	stream  *crilog.Stream
	refusal refusal     // guarded by mu
	sinks   []int       // guarded by mu; write ends of pipes
	begun   bool        // guarded by mu; the bytes found in the spool are logged
	ended   bool        // guarded by mu
	trim    *time.Timer // guarded by mu; nil while no trim is scheduled
}

// newOutput takes over a stream, of an entry's terminal if it has one. pump
// starts it. exited is closed when the process has exited.
func newOutput(k *keeper, e *entry, roles wire.Stream, files *wire.Files, exited chan struct{}) (*output, error) {
	terminal, err := e.held.Of(wire.Terminal).Copy()
	if err != nil {
		return nil, err
	}

	o := &output{
		k: k, id: e.id, roles: roles, relay: -1, spoolFD: files.Take(roles.Spool), exited: exited,
		gone: make(chan struct{}), done: make(chan struct{}), sinks: files.TakeAll(roles.Sinks).Numbers(),
	}
	pipe := files.Take(roles.Pipe)
	from := pipe
	if len(terminal) > 0 {
		from, o.relay = terminal[0].FD, pipe
	}

	err = errors.Join(unix.SetNonblock(pipe, true), unix.SetNonblock(from, true))
	o.file = os.NewFile(uintptr(from), roles.Name)
	if err == nil {
		o.raw, err = o.file.SyscallConn()
	}
	if err == nil {
		o.spool, err = spool.Open(o.spoolFD)
	}
	if err != nil {
		o.discard()
		return nil, fmt.Errorf("use %s: %w", roles.Name, err)
	}

	o.stream = crilog.NewStream(roles.Name, o.spool)
	return o, nil
}

// pump copies until the output ends or the file is closed.
func (o *output) pump() {
	defer close(o.done)
	defer o.finish()
	for {
		var err error
		rerr := o.raw.Read(func(fd uintptr) bool {
			_, err = o.copy(int(fd))
			return err != unix.EAGAIN
		})

		switch {
		case rerr != nil, err == io.EOF:
			return
		case err == errRefused:
			o.await(o.gone)
		case err == unix.EIO && o.relay >= 0:
			if !o.reopened() {
				return
			}
		case errors.Is(err, unix.ENOMEM): // to map the spool; nothing was read
			select {
			case <-time.After(lastRetry):
			case <-o.gone:
				return
			}
		case err != nil:
			o.k.logf("read %s of %s: %v", o.roles.Name, o.id, err)
			return
		}
	}
}

// reopened waits a moment for the container to reopen a terminal that no
// process has open, and is false once the process has exited.
func (o *output) reopened() bool {
	select {
	case <-o.exited:
		return false
	case <-time.After(hangupRetry):
		return true
	}
}

// copy reads once and passes the bytes on. Bytes that earlier keepers read and
// did not log come first: each keeper killed at that point leaves one more
// read, and the spool has room for one.
func (o *output) copy(fd int) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return 0, io.EOF
	}
	if !o.begun || o.refusal.on() {
		if err := o.writeLocked(false); err != nil {
			return 0, err
		}
		o.begun = true
	}

	got, err := o.fillLocked(fd)
	if err != nil {
		o.trimLaterLocked()
		return 0, err
	}

	o.sinks = slices.DeleteFunc(o.sinks, func(sink int) bool { return !offer(sink, got) })
	return len(got), o.writeLocked(false)
}

// fillLocked reads output into the spool. A terminal cannot be spliced into a
// file, so its output passes through a pipe.
func (o *output) fillLocked(fd int) ([]byte, error) {
	if o.relay < 0 {
		return o.spool.Fill(fd)
	}
	for {
		got, err := o.spool.Fill(o.relay)
		if err != unix.EAGAIN {
			return got, err
		}

		for {
			if _, err = unix.Splice(fd, nil, o.relay, nil, terminalRead, unix.SPLICE_F_NONBLOCK); err != unix.EINTR {
				break
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

// offer writes b to an attached reader and is false if the reader is gone or
// was too slow, and was dropped: a container does not wait for it. The mode of
// its pipe shows the reader that output was lost.
func offer(sink int, b []byte) bool {
	for len(b) > 0 {
		n, err := unix.Write(sink, b)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			if writable(sink) {
				continue
			}
			_ = unix.Fchmod(sink, wire.OutputLost) // a pipe has a mode like any file
			unix.Close(sink)
			return false
		case err != nil:
			unix.Close(sink)
			return false
		}

		b = b[n:]
	}
	return true
}

// writable waits a moment for a pipe to have room again.
func writable(sink int) bool {
	for end := time.Now().Add(sinkPatience); ; {
		left := time.Until(end)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(sink), Events: unix.POLLOUT}}, max(int(left.Milliseconds()), 0))
		if err != unix.EINTR {
			return n > 0
		}
	}
}

// drain logs what the process wrote before its exit. Other processes may still
// write to the pipe; their output follows in the background. A log that refuses
// writes delays the report of an exit by exitPatience at most.
func (o *output) drain() {
	if o.relay >= 0 {
		select {
		case <-o.done:
		case <-time.After(terminalDrain):
		}
	} else {
		late := time.NewTimer(exitPatience)
		defer late.Stop()

		// An error means that the output has ended and is logged.
		_ = o.raw.Control(func(fd uintptr) {
			pending, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
			for err == nil && pending > 0 {
				var n int
				n, err = o.copy(int(fd))
				pending -= n
				if err == errRefused {
					err = o.awaitOr(late.C)
				}
			}
		})
	}
	o.end()
}

// end logs an unfinished line and closes the pipes of attached readers.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	if err := o.writeLocked(true); err != nil {
		o.k.logf("%s of %s: the last lines are not logged: %v", o.roles.Name, o.id, o.refusal.cause)
	}
	o.closeSinksLocked()
}

// finish ends the output.
func (o *output) finish() {
	for late := time.After(exitPatience); ; {
		o.mu.Lock()
		err := o.writeLocked(true)
		o.mu.Unlock()
		if err == nil || o.awaitOr(late) != nil {
			break
		}
	}
	o.discard()
}

// discard closes the descriptors of a stopped output. The file is closed
// without the lock: Close waits for a drain under way, which may wait for the
// lock.
func (o *output) discard() {
	o.mu.Lock()
	o.ended = true
	o.closeSinksLocked()
	if o.trim != nil {
		o.trim.Stop()
	}
	if o.spool != nil {
		o.spool.Close()
	}
	if o.log != nil {
		o.log.Leave(o.stream)
	}
	o.mu.Unlock()

	o.fdMu.Lock()
	defer o.fdMu.Unlock()
	if o.closed {
		return
	}

	o.closed = true
	o.file.Close()
	unix.Close(o.spoolFD)
	if o.relay >= 0 {
		unix.Close(o.relay)
	}
}

// release stops an output whose entry was removed from the table.
func (o *output) release() {
	close(o.gone)
	if !o.pumped {
		o.discard()
		return
	}
	o.file.Close()
}

// copies returns copies of an output's source and spool, none once it has
// ended. It never waits for a disk.
func (o *output) copies() (wire.Files, error) {
	o.fdMu.Lock()
	defer o.fdMu.Unlock()
	if o.closed {
		return nil, nil
	}
	fd := o.relay
	if fd < 0 {
		// It fails once the file is closed: the output ends.
		if err := o.raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
			return nil, nil
		}
	}
	return wire.Files{{Role: o.roles.Pipe, FD: fd}, {Role: o.roles.Spool, FD: o.spoolFD}}.Copy()
}

// filesLocked returns an output's descriptors, which stay its own, none once it
// has ended.
func (o *output) filesLocked() (files wire.Files) {
	pipe := o.relay
	// It fails if the entry is being released.
	if o.ended || pipe < 0 && o.raw.Control(func(fd uintptr) { pipe = int(fd) }) != nil {
		return nil
	}

	files = wire.Files{{Role: o.roles.Pipe, FD: pipe}, {Role: o.roles.Spool, FD: o.spoolFD}}
	for _, fd := range o.sinks {
		files.Add(o.roles.Sinks, fd)
	}
	return files
}

func (o *output) closeSinksLocked() {
	for _, fd := range o.sinks {
		unix.Close(fd)
	}
	o.sinks = nil
}

// attach takes over fd, to which the output is copied from now on.
func (o *output) attach(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return fmt.Errorf("use attached pipe: %w", err)
	}

	// A larger pipe helps slow readers; the kernel may refuse it.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, sinkSize)
	o.mu.Lock()
	defer o.mu.Unlock()

	if o.ended {
		unix.Close(fd)
		return nil
	}
	o.sinks = append(o.sinks, fd)
	return nil
}
