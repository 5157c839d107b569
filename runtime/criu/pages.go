package criu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// PageSink takes the memory of processes while it is saved, file after file.
type PageSink interface {
	// Next begins a file of this name, which ends the last one. Its content is to be written
	// to the file that is returned, from the offset on.
	Next(name string) (to *os.File, offset int64, err error)
	// Moved says that n more bytes of it are there.
	Moved(n int64)
}

const (
	// maxFIFOs bounds how many files of memory go to a sink: each needs a descriptor.
	maxFIFOs = 64
	// pipeSize is how much a pipe holds, in bytes: an unprivileged one may have as much.
	pipeSize = 1 << 20
)

// pageName is the name of CRIU's n-th file of memory, from 1 on. There is one for each
// process, and one for each piece of shared memory, in the order in which they are written.
func pageName(n int) string { return fmt.Sprintf("pages-%d.img", n) }

// pageMover moves what CRIU writes of memory to a sink. CRIU takes no other place for it than
// files in the directory of images, so those are FIFOs. What it writes to them are not
// copies but the processes' own pages: they must stay frozen until all is moved.
type pageMover struct {
	images string
	sink   PageSink
	fifos  []int // their read ends
	// ended is readable once CRIU will open no more of them: its other end is closed.
	ended, end *os.File
	done       chan struct{}
	err        error // of the moves, once they are done
}

// newPageMover makes n FIFOs in a directory, and moves what is written to them until
// [pageMover.finish].
func newPageMover(images string, sink PageSink, n int) (_ *pageMover, err error) {
	m := &pageMover{images: images, sink: sink, done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make FIFOs for memory: %w", err), m.remove())
		}
	}()
	if m.ended, m.end, err = os.Pipe(); err != nil {
		return nil, err
	}
	for i := range min(n, maxFIFOs) {
		path := m.path(i)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return nil, err
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, errors.Join(err, os.Remove(path))
		}
		m.fifos = append(m.fifos, fd)
		// Otherwise it holds less, and that is slower.
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
	}

	go func() {
		defer close(m.done)
		m.err = m.move()
		m.close() // CRIU fails then, if it is not done, and does not wait
	}()
	return m, nil
}

func (m *pageMover) path(i int) string { return filepath.Join(m.images, pageName(i+1)) }

// finish moves what is left once CRIU has ended, and removes the FIFOs.
func (m *pageMover) finish() error {
	m.end.Close()
	<-m.done
	return errors.Join(m.err, m.remove())
}

func (m *pageMover) close() {
	for _, fd := range m.fifos {
		unix.Close(fd)
	}
}

func (m *pageMover) remove() (err error) {
	for i := range m.fifos {
		err = errors.Join(err, os.Remove(m.path(i)))
	}
	m.ended.Close()
	m.end.Close()
	return err
}

// move moves all files, one after the other, until there is one that CRIU has not opened.
func (m *pageMover) move() error {
	for i, fd := range m.fifos {
		opened, err := m.moveOne(pageName(i+1), fd)
		if err != nil {
			return fmt.Errorf("save memory: %w", err)
		}
		if !opened {
			break
		}
	}
	return nil
}

// moveOne moves one file until CRIU has closed it.
func (m *pageMover) moveOne(name string, from int) (opened bool, err error) {
	var to *os.File
	var offset int64
	next := func() (err error) {
		if to == nil {
			to, offset, err = m.sink.Next(name)
		}
		return err
	}
	for {
		waiting := []unix.PollFd{{Fd: int32(from), Events: unix.POLLIN}, {Fd: int32(m.ended.Fd())}}
		if _, err := unix.Poll(waiting, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return false, err
		}

		// A FIFO that was never opened by a writer is not one that all of them have closed.
		switch got := waiting[0].Revents; {
		case got&unix.POLLIN != 0:
		case got&unix.POLLHUP != 0:
			return true, next()
		default:
			return false, nil
		}
		if err := next(); err != nil {
			return false, err
		}
		n, err := unix.Splice(from, nil, int(to.Fd()), &offset, pipeSize, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, err
		}
		m.sink.Moved(n)
	}
}
