package spawn

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// span is a range of addresses, its end excluded.
type span struct{ from, to uintptr }

// Text is the memory of a process that a child needs for its code, and the end
// of the address space. The zero value is looked up when needed.
type Text struct {
	keep []span // in ascending order
	top  uintptr
}

// FindText finds the code of this program in its memory. It never moves, so the
// result serves all children.
func FindText() (Text, error) {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return Text{}, fmt.Errorf("find own code: %w", err)
	}
	defer f.Close()

	t, err := readText(f, entry())
	if err != nil {
		return Text{}, fmt.Errorf("find own code in /proc/self/maps: %w", err)
	}

	return t, nil
}

// mapping is a line of /proc/PID/maps.
type mapping struct {
	span
	access, file string
}

// readText reads a list of mappings. It keeps the read-only ones of the file
// mapped at the address code, and those of the kernel, which may refuse to
// unmap them, and which hold no data.
func readText(maps io.Reader, code uintptr) (Text, error) {
	var (
		list []mapping
		file string
	)

	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		m, err := parseMapping(lines.Text())
		if err != nil {
			return Text{}, err
		}

		list = append(list, m)
		if m.from <= code && code < m.to {
			file = m.file
		}
	}

	if err := lines.Err(); err != nil {
		return Text{}, err
	}
	if file == "" {
		return Text{}, fmt.Errorf("nothing is mapped at %#x", code)
	}

	var t Text
	for _, m := range list {
		if m.file == "[vsyscall]" {
			continue // beyond the reach of munmap
		}

		t.top = max(t.top, m.to)
		kernels := strings.HasPrefix(m.file, "[v") || m.file == "[uprobes]" || m.file == "[sigpage]"
		if kernels || m.file == file && m.access[1] != 'w' {
			t.keep = append(t.keep, m.span)
		}
	}

	return t, nil
}

func parseMapping(line string) (mapping, error) {
	// 00400000-0048c000 r-xp 00000000 fd:00 1234    /bin/crisp-keeper (deleted)
	fields := strings.SplitN(line, " ", 6)
	if len(fields) < 6 || len(fields[1]) < 4 {
		return mapping{}, fmt.Errorf("malformed line %q", line)
	}

	first, last, _ := strings.Cut(fields[0], "-")
	from, err1 := strconv.ParseUint(first, 16, 64)
	to, err2 := strconv.ParseUint(last, 16, 64)
	if err1 != nil || err2 != nil {
		return mapping{}, fmt.Errorf("malformed addresses in %q", line)
	}

	return mapping{span{uintptr(from), uintptr(to)}, fields[1], strings.TrimSpace(fields[5])}, nil
}

// gaps returns the ranges between the kept spans, up to top.
func gaps(keep []span, top uintptr) []span {
	slices.SortFunc(keep, func(a, b span) int {
		if a.from < b.from {
			return -1
		}
		return 1
	})

	var free []span
	at := uintptr(0)
	for _, s := range keep {
		if s.from > at {
			free = append(free, span{at, s.from})
		}
		at = max(at, s.to)
	}

	if at < top {
		free = append(free, span{at, top})
	}

	return free
}

// unkept returns the ranges of descriptors that are between the kept ones, and
// after them.
func unkept(kept []int) []span {
	const last = math.MaxUint32 // the highest number that close_range takes
	keep := make([]span, len(kept))
	for i, fd := range kept {
		keep[i] = span{uintptr(fd), uintptr(fd) + 1}
	}
	return gaps(keep, last+1)
}

// heapAround is the part of the Go heap around the child's description: all of
// it, in a program as small as the keeper.
func heapAround(of *Child) span {
	const reserved = 64 << 20 // at a time, by the Go runtime
	from := uintptr(unsafe.Pointer(of)) &^ (reserved - 1)
	return span{from, from + reserved}
}

// withhold excludes a range of memory from children (MADV_DONTFORK). They would
// unmap it first; this saves the time. New parts of the heap may appear at any
// time, so it is repeated before each child.
func withhold(s span) {
	// An error means that the range has holes, which do not matter.
	_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, s.from, s.to-s.from, unix.MADV_DONTFORK)
}

// arena allocates zeroed memory outside the Go heap, in mappings for this child
// alone. What is stored there must not point into the heap.
type arena struct {
	chunks [][]byte
	free   []byte
}

const firstChunk = 256 << 10 // unused pages cost nothing

func (a *arena) alloc(n int) ([]byte, error) {
	n = (n + 15) &^ 15
	if n > len(a.free) {
		size := max(n, firstChunk<<len(a.chunks))
		chunk, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return nil, fmt.Errorf("map %d bytes for the child: %w", size, err)
		}

		a.chunks = append(a.chunks, chunk)
		a.free = chunk
	}

	b := a.free[:n:n]
	a.free = a.free[n:]

	return b, nil
}

// release unmaps the memory; the child has its own copy.
func (a *arena) release() {
	for _, chunk := range a.chunks {
		// This cannot fail for our own mapping.
		_ = unix.Munmap(chunk)
	}
	a.chunks, a.free = nil, nil
}

func (a *arena) spans() []span {
	var list []span
	for _, chunk := range a.chunks {
		// The kernel maps whole pages.
		page := uintptr(os.Getpagesize())
		from := addr(chunk)
		list = append(list, span{from, from + (uintptr(len(chunk))+page-1)&^(page-1)})
	}
	return list
}

// listKey identifies a list of strings by its address.
type listKey struct {
	first *string
	n     int
}

// layout places data in an arena. After an error it continues in memory that no
// child will see; the error is checked once, at the end.
type layout struct {
	arena arena
	lists map[listKey]uintptr // addresses of lists of strings
	err   error
}

func (l *layout) alloc(n int) []byte {
	b, err := l.arena.alloc(n)
	if err != nil {
		l.err = err
		return make([]byte, max(n, 1))
	}
	return b
}

// room returns memory for n values of a type without pointers into the heap.
func room[T any](l *layout, n int) []T {
	if n == 0 {
		return nil
	}

	var t T
	b := l.alloc(n * int(unsafe.Sizeof(t)))
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), n)[:0]
}

// bytes returns a copy of b followed by at least pad zeros.
func (l *layout) bytes(b []byte, pad int) []byte {
	c := l.alloc(len(b) + pad)
	copy(c, b)
	return c
}

func (l *layout) str(s string) uintptr {
	c := l.alloc(len(s) + 1)
	copy(c, s)
	return addr(c)
}

// strs returns the address of a NULL-terminated vector of C strings. A list that
// several steps share is laid out once.
func (l *layout) strs(list []string) uintptr {
	key := listKey{unsafe.SliceData(list), len(list)}
	if at, ok := l.lists[key]; ok {
		return at
	}

	vec := l.alloc(8 * (len(list) + 1))
	if l.lists == nil {
		l.lists = map[listKey]uintptr{}
	}

	l.lists[key] = addr(vec)
	for i, s := range list {
		binary.NativeEndian.PutUint64(vec[8*i:], uint64(l.str(s)))
	}
	return addr(vec)
}

// words returns memory that holds the given 8-byte words.
func (l *layout) words(words ...uint64) []byte {
	b := l.alloc(8 * len(words))
	for i, w := range words {
		binary.NativeEndian.PutUint64(b[8*i:], w)
	}
	return b
}

// passFD lays out a struct msghdr that carries one byte and one descriptor,
// and returns its address and the place of the descriptor.
func (l *layout) passFD() (uintptr, *uint32) {
	iov := l.words(uint64(addr(l.bytes([]byte{0}, 0))), 1)
	control := l.alloc(unix.CmsgSpace(4))
	binary.NativeEndian.PutUint64(control, uint64(unix.CmsgLen(4)))
	binary.NativeEndian.PutUint32(control[8:], unix.SOL_SOCKET)
	binary.NativeEndian.PutUint32(control[12:], unix.SCM_RIGHTS)
	msg := l.words(0, 0, uint64(addr(iov)), 1, uint64(addr(control)), uint64(unix.CmsgSpace(4)), 0)

	return addr(msg), word32(control[unix.CmsgLen(0):])
}

func addr(b []byte) uintptr    { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
func word32(b []byte) *uint32  { return (*uint32)(unsafe.Pointer(unsafe.SliceData(b[:4]))) }
func addrOf(p *int32) uint64   { return uint64(uintptr(unsafe.Pointer(p))) }
func noRegs() (regs [6]int8)   { return [6]int8{-1, -1, -1, -1, -1, -1} }
func isExec(call uintptr) bool { return call == unix.SYS_EXECVE || call == unix.SYS_EXECVEAT }
