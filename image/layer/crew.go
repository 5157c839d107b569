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
	// maxSmallFile is the size up to which files are written by the crew.
	maxSmallFile = 64 << 10
	// A batch is full with this many files or bytes.
	batchFiles = 128
	batchBytes = 512 << 10

	maxCrew = 4
)

// crew is a pool of goroutines that write small files, while another one reads
// the archive. It does not keep the archive's order. So it only gets files whose
// names are free and whose directories are open, and before anything for which
// the order of entries matters the unpacker waits for it: see [unpacker.flush].
type crew struct {
	work, done chan *batch
	workers    sync.WaitGroup
	// filling is the batch that is being filled, nil if there is none; idle are
	// empty batches, and sent counts those that the crew is working on.
	filling *batch
	idle    []*batch
	sent    int
	// pending are the names of files that may not exist yet.
	pending map[string]bool
}

// batch is a number of files to be written, with their content.
type batch struct {
	files []smallFile
	data  []byte
	// extra is the size of names and attributes, in bytes.
	extra int

	usage store.Usage
	err   error
}

type smallFile struct {
	dir  int // descriptor of the open directory
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
				b.write()
				c.done <- b
			}
		})
	}

	return c
}

// close waits until the crew has finished and ends it.
func (c *crew) close() {
	close(c.work)
	c.workers.Wait()
}

// write writes the files, up to the first error.
func (b *batch) write() {
	for i := range b.files {
		f := &b.files[i]
		usage, err := f.write()
		if err != nil {
			b.err = fmt.Errorf("unpack %q: %w", shorten(f.name), archiveError(err))
			return
		}
		b.usage = b.usage.Add(usage)
	}
}

func (f *smallFile) write() (store.Usage, error) {
	fd, err := createFile(f.dir, path.Base(f.name), &f.attr)
	if err != nil {
		return store.Usage{}, err
	}
	if _, err := fdWriter(fd).Write(f.data); err != nil {
		return store.Usage{}, errors.Join(err, unix.Close(fd))
	}
	return finishFile(fd, &f.attr)
}

// send hands the batch that is being filled to the crew.
func (c *crew) send() {
	if c.filling != nil {
		c.work <- c.filling
		c.filling = nil
		c.sent++
	}
}

// collect adds up the result of a batch and returns the batch to the idle ones.
func (u *unpacker) collect(b *batch) error {
	c := u.crew
	for i := range b.files {
		delete(c.pending, b.files[i].name)
	}

	u.usage = u.usage.Add(b.usage)
	err := b.err
	if u.failed == nil {
		u.failed = err
	}

	clear(b.files) // so that names and attributes can be freed
	*b = batch{files: b.files[:0], data: b.data[:0]}
	c.idle = append(c.idle, b)
	return err
}

// flush returns when all files that the crew was given are written.
func (u *unpacker) flush() error {
	c := u.crew
	var errs []error
	if b := c.filling; b != nil {
		// Writing it here is faster than waiting for the crew.
		c.filling = nil
		b.write()
		errs = append(errs, u.collect(b))
	}
	for ; c.sent > 0; c.sent-- {
		errs = append(errs, u.collect(<-c.done))
	}
	return errors.Join(errs...)
}

// fill begins a batch. If none is idle it waits until the crew has finished one.
func (u *unpacker) fill() error {
	c := u.crew
	if len(c.idle) == 0 {
		c.sent--
		if err := u.collect(<-c.done); err != nil {
			return err
		}
	}
	last := len(c.idle) - 1
	c.filling, c.idle = c.idle[last], c.idle[:last]
	if c.filling.data == nil {
		c.filling.data = make([]byte, 0, batchBytes+maxSmallFile)
	}
	return nil
}

// small gives a file to the crew, if it is small, its directory is open and its
// name is free. It returns false otherwise.
func (u *unpacker) small(name string, hdr *tar.Header, body io.Reader) (bool, error) {
	c := u.crew
	dir, ok := u.dirs.cached(u.root, path.Dir(name))
	if !ok || hdr.Size > maxSmallFile || c.pending[name] {
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

	b.files = append(b.files, smallFile{dir: int(dir.Fd()), name: name, attr: attr, data: b.data[at:]})
	b.extra += len(name) + attr.size()
	c.pending[name] = true
	if len(b.files) == batchFiles || len(b.data)+b.extra >= batchBytes {
		c.send()
	}

	return true, nil
}
