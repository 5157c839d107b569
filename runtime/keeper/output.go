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
)

const (
	readSize = 32 << 10
	// sinkSize is the pipe size asked for attached readers.
	sinkSize = 256 << 10
	// terminalDrain is how long the end of a terminal's output is awaited
	// once the process has ended: it passes through a kernel worker.
	terminalDrain = 100 * time.Millisecond
	// hangupRetry is the pause in which a terminal that nobody has open may
	// be opened again by a living container.
	hangupRetry = 200 * time.Millisecond
)

// output reads a pipe or terminal of a container into its log and to
// attached readers.
type output struct {
	k        *keeper
	name     string
	file     *os.File
	raw      syscall.RawConn
	log      *crilog.Log
	terminal bool
	exited   chan struct{} // closed when the process has ended
	done     chan struct{} // closed at the end of the output

	mu     sync.Mutex // held from a read until what was read is in the log
	stream *crilog.Stream
	sinks  []int // guarded by mu; write ends of pipes
	ended  bool  // guarded by mu
}

// newOutput takes over the source's descriptor. exited is closed when the
// process has ended.
func newOutput(k *keeper, src named, log *crilog.Log, exited chan struct{}) (*output, error) {
	if err := unix.SetNonblock(src.fd, true); err != nil {
		unix.Close(src.fd)
		return nil, fmt.Errorf("use %s: %w", src.name, err)
	}
	file := os.NewFile(uintptr(src.fd), src.name)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("use %s: %w", src.name, err)
	}
	return &output{
		k: k, name: src.name, file: file, raw: raw, log: log, exited: exited,
		done: make(chan struct{}), stream: crilog.NewStream(src.name),
	}, nil
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
		case err == unix.EIO && o.terminal:
			if !o.reopened() {
				return
			}
		case err != nil:
			o.k.logf("read %s: %v", o.file.Name(), err)
			return
		}
	}
}

// reopened waits a moment for somebody to open a terminal again that nobody
// has open, and is false once the process has ended.
func (o *output) reopened() bool {
	select {
	case <-o.exited:
		return false
	case <-time.After(hangupRetry):
		return true
	}
}

// copy reads once and passes on what it got.
func (o *output) copy(fd int) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return 0, io.EOF
	}
	buf, ok := o.k.readBuf.Get().(*[]byte)
	if !ok {
		return 0, errors.New("no buffer")
	}
	defer o.k.readBuf.Put(buf)
	for {
		n, err := unix.Read(fd, *buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		o.log.Write(o.stream, (*buf)[:n])
		o.sinks = slices.DeleteFunc(o.sinks, func(sink int) bool { return !offer(sink, (*buf)[:n]) })
		return n, nil
	}
}

// offer gives b to an attached reader; what does not fit into the pipe is
// lost to it. It closes the pipe of a reader that has gone.
func offer(sink int, b []byte) bool {
	for len(b) > 0 {
		n, err := unix.Write(sink, b)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return true
		case err != nil:
			unix.Close(sink)
			return false
		}
		b = b[n:]
	}
	return true
}

// drain brings what the process wrote before its end into the log. What
// others still write to the pipe follows in the background.
func (o *output) drain() {
	if o.terminal {
		select {
		case <-o.done:
		case <-time.After(terminalDrain):
		}
	} else {
		// An error means that the output has ended and is logged.
		_ = o.raw.Control(func(fd uintptr) {
			pending, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
			for err == nil && pending > 0 {
				var n int
				n, err = o.copy(int(fd))
				pending -= n
			}
		})
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.log.End(o.stream)
	o.closeSinksLocked()
}

// finish ends the output. The file is closed without the lock: Close waits
// for a drain under way, which may wait for the lock.
func (o *output) finish() {
	o.mu.Lock()
	o.ended = true
	o.log.End(o.stream)
	o.closeSinksLocked()
	o.mu.Unlock()
	o.file.Close()
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
	// A larger pipe is a kindness to slow readers that the kernel may refuse.
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
