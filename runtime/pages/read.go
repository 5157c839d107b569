package pages

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Size is that of the blocks that are written, in bytes. Pages have it, or a multiple.
const Size = 4096

const (
	// run is how much is read at a time, in bytes.
	run = 256 << 10
	// maxMapping is the longest mapping that is searched for pages, in bytes: the kernel
	// describes each page of it, also of one that merely reserves addresses.
	maxMapping = 64 << 30
)

// process is one whose memory is read.
type process struct {
	mem, pagemap *os.File
	mappings     []mapping
	pageSize     uint64
}

// mapping is a part of a process' addresses.
type mapping struct {
	start, end uint64
	// shared means that pages are not the process' own alone, but still in no file.
	shared bool
}

// write writes the pages of the processes to w. One that has ended is left out. Descriptors
// refer to the processes, since another one may get a PID meanwhile.
func write(w io.Writer, pids, pidfds []int) error {
	for i, pid := range pids {
		if err := writeOne(w, pid, pidfds[i]); err != nil {
			return fmt.Errorf("read memory of process %d: %w", pid, err)
		}
	}
	return nil
}

func writeOne(w io.Writer, pid, pidfd int) error {
	p, err := open(pid)
	if err != nil {
		return gone(err)
	}
	defer p.close()
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil {
		return gone(err)
	}
	for _, m := range p.mappings {
		if err := p.writeMapping(w, m); err != nil {
			return err
		}
	}
	return nil
}

// gone returns the errors that do not say that the process has ended.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func open(pid int) (_ *process, err error) {
	p, dir := &process{pageSize: uint64(os.Getpagesize())}, fmt.Sprintf("/proc/%d/", pid)
	defer func() {
		if err != nil {
			p.close()
		}
	}()

	if p.mem, err = os.Open(dir + "mem"); err != nil {
		return nil, err
	}
	if p.pagemap, err = os.Open(dir + "pagemap"); err != nil {
		return nil, err
	}
	maps, err := os.Open(dir + "maps")
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	p.mappings, err = parse(maps)
	return p, err
}

func (p *process) close() {
	p.mem.Close()
	p.pagemap.Close()
}

// parse returns the mappings with memory that no file has, in the format of proc_pid_maps(5).
func parse(maps io.Reader) (list []mapping, err error) {
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		// 7f0c1e000000-7f0c1e021000 rw-p 00000000 00:00 0      [stack]
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || len(fields[1]) != 4 || fields[1][0] != 'r' {
			continue
		}

		name := strings.Join(fields[5:], " ")
		m := mapping{shared: fields[1][3] == 's'}
		if m.shared && !strings.HasPrefix(name, "/memfd:") && !strings.HasPrefix(name, "/dev/zero (deleted)") {
			continue
		}
		start, end, _ := strings.Cut(fields[0], "-")
		if m.start, err = strconv.ParseUint(start, 16, 64); err != nil {
			return nil, fmt.Errorf("parse mapping %.100q: %w", lines.Text(), err)
		}
		if m.end, err = strconv.ParseUint(end, 16, 64); err != nil {
			return nil, fmt.Errorf("parse mapping %.100q: %w", lines.Text(), err)
		}
		// The address of vsyscall is no offset of a file.
		if m.end > 1<<63 || m.end <= m.start || m.end-m.start > maxMapping {
			continue
		}
		list = append(list, m)
	}
	return list, lines.Err()
}

// Bits of an entry in the page map: https://docs.kernel.org/admin-guide/mm/pagemap.html
const (
	present  = 1 << 63
	inFile   = 1 << 61 // or shared memory
	entryLen = 8
)

// has reports whether an entry of the page map is for a page to be read.
func (m mapping) has(entry uint64) bool {
	return entry&present != 0 && (m.shared || entry&inFile == 0)
}

// writeMapping writes the pages of a mapping that are in memory.
func (p *process) writeMapping(w io.Writer, m mapping) error {
	entries, content := make([]byte, run/p.pageSize*entryLen), make([]byte, run)
	for at := m.start; at < m.end; {
		n, err := p.pagemap.ReadAt(entries[:min(uint64(len(entries)), (m.end-at)/p.pageSize*entryLen)], int64(at/p.pageSize*entryLen))
		if n /= entryLen; n == 0 {
			if errors.Is(err, io.EOF) {
				return nil // it has ended
			}
			return err
		}

		for i := 0; i < n; {
			if !m.has(binary.NativeEndian.Uint64(entries[i*entryLen:])) {
				i++
				continue
			}
			first := i
			for i < n && m.has(binary.NativeEndian.Uint64(entries[i*entryLen:])) {
				i++
			}
			if err := p.copy(w, at+uint64(first)*p.pageSize, content[:uint64(i-first)*p.pageSize]); err != nil {
				return err
			}
		}
		at += uint64(n) * p.pageSize
	}
	return nil
}

// copy writes as many pages from an address on as can be read, into a buffer of that length.
func (p *process) copy(w io.Writer, at uint64, buffer []byte) error {
	n, _ := p.mem.ReadAt(buffer, int64(at)) // what is unmapped meanwhile cannot be read
	_, err := w.Write(buffer[:n-n%Size])
	return err
}
