// Package spool keeps output on its way from a container's pipe to its log in
// memory that outlives the process that copies it: a memfd, held by two
// processes. If that process is killed, at any instruction, another one
// continues at exactly the byte where it stopped.
//
//	pipe ──splice──▶ [header | logged | held ......... | free] ──▶ log file
//	                         start ─┘      position ───┘
//
// A read(2) interrupted by SIGKILL leaves no trace of how much it took from the
// pipe. So the bytes are spliced into the memfd at its file position: the
// kernel takes them from the pipe and moves the position in one system call,
// which is atomic with regard to SIGKILL, and the position belongs to the open
// file, not to the process.
//
// The log file's size decides what has left the spool. Before a write the
// header records which part of the spool is written to which file at which
// offset. If the file has not grown by all of it, it is truncated and the part
// is written again ([Recover]).
//
// The held bytes, an unfinished line, move to the front before the space runs
// out; after every step of that the spool reads the same.
//
// A spool is mapped while it is used: each mapping, also one that children do
// not get, makes every fork of the process slower.
package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// ReadSize is how much is taken from a pipe at once.
	ReadSize = 32 << 10
	// base is where the bytes begin, behind the header.
	base = 64
	// maxSize bounds the address space of a spool.
	maxSize = 64 << 20
)

// pageSize is what an idle spool keeps: the unit in which the kernel frees
// memory, 4 KiB, or up to 64 KiB on arm64.
func pageSize() int64 { return int64(os.Getpagesize()) }

// pages rounds a size up to whole pages.
func pages(n int64) int64 { return (n + pageSize() - 1) &^ (pageSize() - 1) }

// ErrInvalid is a file that is not a spool.
var ErrInvalid = errors.New("not a spool")

// header is the part of a spool that a later process needs to continue. It is
// written by one system call, atomic with regard to SIGKILL.
type header struct {
	start int64 // where the held bytes begin
	write Write // the last write; it may be incomplete
	next  int64 // where they begin once it is
}

// Write is a write to a log file.
type Write struct {
	// Seq orders the writes to one log.
	Seq uint64
	// Dev and Ino identify the file, Offset and Length the part of it.
	Dev, Ino       uint64
	Offset, Length int64
}

// Spool is one stream's spool. It is not safe for concurrent use.
type Spool struct {
	fd         int
	size       int64
	data       []byte // the mapped file; nil while nothing is held or read
	start, pos int64
	high       int64 // pages below it may be in use
	last       Write
}

// Create makes a spool for lines of up to maxLine bytes.
func Create(maxLine int) (*os.File, error) {
	fd, err := unix.MemfdCreate("spool", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make spool: %w", err)
	}

	f := os.NewFile(uintptr(fd), "spool")
	// Room for an unfinished line, its copy at the front, and one read.
	size := pages(base + 2*int64(maxLine) + ReadSize)
	if err := unix.Ftruncate(fd, size); err != nil {
		f.Close()
		return nil, fmt.Errorf("size spool: %w", err)
	}

	// A mapping of it can then be accessed without SIGBUS.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal spool: %w", err)
	}
	return f, nil
}

// Open continues a spool that no other process uses. fd stays open after Close.
func Open(fd int) (*Spool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("examine spool: %w", err)
	}

	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 || st.Size < base+ReadSize || st.Size > maxSize {
		return nil, fmt.Errorf("open spool: %w", ErrInvalid)
	}

	h, pos, err := read(fd)
	if err != nil {
		return nil, err
	}

	if pos > st.Size || h.start > st.Size {
		return nil, fmt.Errorf("open spool: %w: position %d, start %d", ErrInvalid, pos, h.start)
	}

	s := &Spool{fd: fd, size: st.Size, start: h.start, pos: pos, high: pos, last: h.write}
	if s.start < s.pos {
		err = s.mapIn()
	}
	return s, err
}

// mapIn maps the file, unless it is mapped.
func (s *Spool) mapIn() error {
	if s.data != nil {
		return nil
	}
	data, err := unix.Mmap(s.fd, 0, int(s.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map spool: %w", err)
	}

	// No child needs it.
	if err := unix.Madvise(data, unix.MADV_DONTFORK); err != nil {
		return errors.Join(fmt.Errorf("withhold spool from children: %w", err), unix.Munmap(data))
	}
	s.data = data
	return nil
}

// read returns a spool's header and position, made consistent.
func read(fd int) (header, int64, error) {
	var b [base]byte
	if _, err := unix.Pread(fd, b[:], 0); err != nil {
		return header{}, 0, fmt.Errorf("read spool: %w", err)
	}

	field := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	h := header{
		start: max(int64(field(0)), base),
		write: Write{Seq: field(1), Dev: field(2), Ino: field(3), Offset: int64(field(4)), Length: int64(field(5))},
		next:  int64(field(6)),
	}

	pos, err := unix.Seek(fd, 0, io.SeekCurrent)
	if err != nil {
		return header{}, 0, fmt.Errorf("read position of spool: %w", err)
	}

	if pos < base { // fresh
		if pos, err = unix.Seek(fd, base, io.SeekStart); err != nil {
			return header{}, 0, fmt.Errorf("set position of spool: %w", err)
		}
	}
	if pos < h.start && h.write.Length == 0 { // compact was killed before it wrote the header
		h.start = base
	}

	return h, pos, nil
}

func (h *header) store(fd int) error {
	var b [base]byte
	for i, v := range []uint64{
		uint64(h.start), h.write.Seq, h.write.Dev, h.write.Ino, uint64(h.write.Offset), uint64(h.write.Length), uint64(h.next),
	} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
	if _, err := unix.Pwrite(fd, b[:], 0); err != nil {
		return fmt.Errorf("write spool: %w", err)
	}
	return nil
}

// Close unmaps the memory. The descriptor stays open.
func (s *Spool) Close() {
	if s.data != nil {
		// It can fail only for memory that was not mapped.
		_ = unix.Munmap(s.data)
		s.data = nil
	}
}

// FD is the spool's descriptor.
func (s *Spool) FD() int { return s.fd }

// Seq is the number of the last write.
func (s *Spool) Seq() uint64 { return s.last.Seq }

// Unfinished returns the write that [Recover] could not undo. It must not be called
// after anything else was done with the spool.
func (s *Spool) Unfinished() (w Write, ok bool) { return s.last, s.last.Length > 0 }

// MaxLine is the longest unfinished line that fits, in bytes.
func (s *Spool) MaxLine() int { return MaxLine(s.size) }

// MaxLine is that of a spool of the given size.
func MaxLine(size int64) int { return int(size-base-ReadSize-1) / 2 }

// Held returns the bytes between Fill and Advance. They are valid until the next call.
func (s *Spool) Held() []byte {
	if s.start == s.pos {
		return nil
	}
	return s.data[s.start:s.pos]
}

// Fill takes bytes from a pipe and returns them. At the pipe's end it returns
// io.EOF. At most MaxLine bytes may be held before.
func (s *Spool) Fill(pipe int) ([]byte, error) {
	// What is taken from the pipe can then be reached.
	if err := s.mapIn(); err != nil {
		return nil, err
	}
	if s.pos-base >= ReadSize || s.pos+ReadSize > s.size {
		if err := s.compact(); err != nil {
			return nil, err
		}
	}

	room := min(s.size-s.pos, ReadSize)
	if room == 0 {
		return nil, fmt.Errorf("fill spool: %w: no room", ErrInvalid)
	}

	for {
		n, err := unix.Splice(pipe, nil, s.fd, nil, int(room), unix.SPLICE_F_NONBLOCK)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return nil, io.EOF
		}

		from := s.pos
		s.pos += n
		s.high = max(s.high, s.pos)
		return s.data[from:s.pos], nil
	}
}

// compact moves the held bytes to the front, unless they are there. The copy
// must end before the original begins: until the header is written, the
// position determines which of the two is valid.
func (s *Spool) compact() error {
	held := s.pos - s.start
	if base+held >= s.start {
		return nil
	}

	// The record of the last write is obsolete, and would determine where the
	// bytes begin.
	h := header{start: s.start, write: Write{Seq: s.last.Seq}}
	if err := h.store(s.fd); err != nil {
		return err
	}

	if held > 0 {
		copy(s.data[base:], s.Held())
	}
	if _, err := unix.Seek(s.fd, base+held, io.SeekStart); err != nil {
		return fmt.Errorf("set position of spool: %w", err)
	}
	s.start, s.pos = base, base+held
	h.start = base
	return h.store(s.fd)
}

// Intend records that the first n of the held bytes are about to be written to a log.
func (s *Spool) Intend(w Write, n int) error {
	h := header{start: s.start, write: w, next: s.start + int64(n)}
	s.last = w
	return h.store(s.fd)
}

// Retract records that the intended write left nothing in the log.
func (s *Spool) Retract() error {
	h := header{start: s.start, write: Write{Seq: s.last.Seq}}
	return h.store(s.fd)
}

// Advance drops the first n of the held bytes.
func (s *Spool) Advance(n int) { s.start += int64(n) }

// Trim frees memory and address space that the held bytes do not need.
func (s *Spool) Trim() error {
	if s.start == s.pos {
		defer s.Close()
	}
	if s.high <= pageSize() {
		return nil
	}
	if err := s.compact(); err != nil {
		return err
	}

	from := pages(s.pos)
	if from >= s.high {
		return nil
	}

	if err := unix.Fallocate(s.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, s.size-from); err != nil {
		return fmt.Errorf("trim spool: %w", err)
	}
	s.high = from
	return nil
}

// Bulky reports whether Trim may free something.
func (s *Spool) Bulky() bool { return s.data != nil && s.start == s.pos || s.high > pageSize() }
