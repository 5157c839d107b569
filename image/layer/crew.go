package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"crisp/image/store"
)

const (
	// smallFile is up to which size files are made by the crew.
	smallFile = 64 << 10
	// A batch is full with so many files or bytes.
	batchFiles = 128
	batchBytes = 512 << 10

	maxCrew = 4
)

// crew makes small files beside the goroutine that reads the archive, whose
// order it does not keep. So it only gets files that nothing is in the way of,
// with their directories open, and whoever is about to do what the order of
// entries matters for waits for it: see [unpacker.settled].
type crew struct {
	work, done chan *batch
	workers    sync.WaitGroup
	// filling is the batch that is being filled, nil if there is none; idle
	// are those without files, and sent is how many the crew has.
	filling *batch
	idle    []*batch
	sent    int
	// pending are the names of files that may not be there yet.
	pending map[string]bool
}

// batch is some files to be made, with their content.
type batch struct {
	files []smallEntry
	data  []byte
	// extra is what names and attributes take.
	extra int

	usage store.Usage
	err   error
}

type smallEntry struct {
	dir  int // of the open directory
	name string
	attr attributes
	data []byte
}

func newCrew() *crew {
	n := min(runtime.GOMAXPROCS(0), maxCrew)
	c := &crew{work: make(chan *batch, n), done: make(chan *batch, 2*n), pending: map[string]bool{}}
	for range 2 * n {
		c.idle = append(c.idle, &batch{})
	}

	for range n {
		c.workers.Go(func() {
			for b := range c.work {
				b.make()
				c.done <- b
			}
		})
	}

	return c
}

// close ends the crew after what it is at.
func (c *crew) close() {
	close(c.work)
	c.workers.Wait()
}

// make makes the files.
func (b *batch) make() {
	for i := range b.files {
		e := &b.files[i]
		usage, err := e.make()
		if err != nil {
			b.err = fmt.Errorf("unpack %q: %w", shorten(e.name), archiveError(err))
			return
		}
		b.usage = b.usage.Add(usage)
	}
}

func (e *smallEntry) make() (store.Usage, error) {
	fd, err := createFile(e.dir, path.Base(e.name), &e.attr)
	if err != nil {
		return store.Usage{}, err
	}
	if _, err := fdWriter(fd).Write(e.data); err != nil {
		return store.Usage{}, errors.Join(err, unix.Close(fd))
	}
	return finishFile(fd, &e.attr)
}

// send hands the batch that is being filled to the crew.
func (c *crew) send() {
	if c.filling != nil {
		c.work <- c.filling
		c.filling = nil
		c.sent++
	}
}

// settle sums up what became of a batch and empties it.
func (u *unpacker) settle(b *batch) error {
	c := u.crew
	for i := range b.files {
		delete(c.pending, b.files[i].name)
	}
	u.usage = u.usage.Add(b.usage)
	err := b.err
	if u.failed == nil {
		u.failed = err
	}
	clear(b.files) // of names and attributes
	*b = batch{files: b.files[:0], data: b.data[:0]}
	c.idle = append(c.idle, b)
	return err
}

// settled returns when all files that the crew was given are made.
func (u *unpacker) settled() error {
	c := u.crew
	var errs []error
	if b := c.filling; b != nil {
		// To wait for somebody else would take longer.
		c.filling = nil
		b.make()
		errs = append(errs, u.settle(b))
	}
	for ; c.sent > 0; c.sent-- {
		errs = append(errs, u.settle(<-c.done))
	}
	return errors.Join(errs...)
}

// fill begins a batch, if need be when the crew is done with one.
func (u *unpacker) fill() error {
	c := u.crew
	if len(c.idle) == 0 {
		c.sent--
		if err := u.settle(<-c.done); err != nil {
			return err
		}
	}
	last := len(c.idle) - 1
	c.filling, c.idle = c.idle[last], c.idle[:last]
	if c.filling.data == nil {
		c.filling.data = make([]byte, 0, batchBytes+smallFile)
	}
	return nil
}

// small gives a file to the crew. It returns false if the file is not for it.
func (u *unpacker) small(name string, hdr *tar.Header, body io.Reader) (bool, error) {
	c := u.crew
	dir, ok := u.dirs.cached(u.root, path.Dir(name))
	if !ok || hdr.Size > smallFile || c.pending[name] {
		return false, nil
	}

	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), path.Base(name), &st, unix.AT_SYMLINK_NOFOLLOW)
	if !errors.Is(err, unix.ENOENT) {
		return false, nil
	}

	if c.filling == nil {
		if err := u.fill(); err != nil {
			return true, err
		}
	}

	attr, err := attributesOf(hdr)
	if err != nil {
		return true, err
	}

	b := c.filling
	at := len(b.data)
	b.data = b.data[:at+int(hdr.Size)]
	if _, err := io.ReadFull(body, b.data[at:]); err != nil {
		return true, archiveError(err)
	}

	b.files = append(b.files, smallEntry{dir: int(dir.Fd()), name: name, attr: attr, data: b.data[at:]})
	b.extra += len(name) + attr.size()
	c.pending[name] = true
	if len(b.files) == batchFiles || len(b.data)+b.extra >= batchBytes {
		c.send()
	}

	return true, nil
}
