package crilog

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t testing.TB, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func newLog(t testing.TB, maxLine int) (*Log, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	l := New(open(t, path), maxLine, &Buffers{})
	t.Cleanup(l.Close)
	return l, path
}

type line struct {
	at      time.Time
	stream  string
	tag     string
	content []byte
}

var lineForm = regexp.MustCompile(`^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) `)

// parse reads a log strictly.
func parse(t testing.TB, paths ...string) (lines []line) {
	t.Helper()
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 0 && data[len(data)-1] != '\n' {
			t.Fatalf("%s ends within a line", path)
		}
		for _, raw := range bytes.SplitAfter(data, []byte{'\n'}) {
			if len(raw) == 0 {
				continue
			}
			m := lineForm.FindSubmatch(raw)
			if m == nil {
				t.Fatalf("%s: bad line %.80q", path, raw)
			}
			at, err := time.Parse(time.RFC3339Nano, string(m[1]))
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, line{at, string(m[2]), string(m[3]), raw[len(m[0]) : len(raw)-1]})
		}
	}
	return lines
}

// join puts a stream's bytes together again.
func join(lines []line, stream string) []byte {
	var b []byte
	for _, l := range lines {
		if l.stream != stream {
			continue
		}
		b = append(b, l.content...)
		if l.tag == "F" {
			b = append(b, '\n')
		}
	}
	return b
}

func TestFormat(t *testing.T) {
	l, path := newLog(t, 8)
	out, errs := NewStream("stdout"), NewStream("stderr")
	begin := time.Now()
	l.Write(out, []byte("hello\n\nwor"))
	l.Write(errs, []byte("12345678\n123456789\n"))
	l.Write(out, []byte("ld\ntail\r\x00\xff"))
	l.End(out)
	l.End(errs)
	var got []string
	for _, x := range parse(t, path) {
		got = append(got, fmt.Sprintf("%s %s %q", x.stream, x.tag, x.content))
		if x.at.Before(begin.Add(-time.Second)) || x.at.After(time.Now().Add(time.Second)) {
			t.Errorf("time %v", x.at)
		}
	}
	want := []string{
		`stdout F "hello"`, `stdout F ""`,
		`stderr F "12345678"`, `stderr P "12345678"`, `stderr F "9"`,
		`stdout F "world"`, `stdout P "tail\r\x00\xff"`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTimeHasNineDigits(t *testing.T) {
	l := &Log{}
	for _, at := range []time.Time{time.Unix(0, 0), time.Unix(1e9, 7), time.Unix(1e9, 999999999), time.Unix(1e9, 120000000)} {
		want := at.UTC().Format("2006-01-02T15:04:05.000000000Z")
		if got := string(l.appendTime(nil, at)); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestRoundTrip writes random bytes in random pieces.
func TestRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, maxLine := range []int{1, 7, 0, 100, -1} {
		l, path := newLog(t, maxLine)
		want := map[string][]byte{}
		streams := []*Stream{NewStream("stdout"), NewStream("stderr")}
		for range 300 {
			s := streams[rnd.IntN(2)]
			data := make([]byte, rnd.IntN(400))
			for i := range data {
				data[i] = byte(rnd.IntN(256))
				if rnd.IntN(20) == 0 {
					data[i] = '\n'
				}
			}
			want[s.name] = append(want[s.name], data...)
			l.Write(s, data)
		}
		for _, s := range streams {
			l.End(s)
		}
		lines := parse(t, path)
		for i, x := range lines {
			if limit := l.maxLine; len(x.content) > limit {
				t.Errorf("line of %d bytes, limit %d", len(x.content), limit)
			}
			if i > 0 && x.at.Before(lines[i-1].at) {
				t.Errorf("time goes back in line %d", i)
			}
		}
		for name, data := range want {
			if !bytes.Equal(join(lines, name), data) {
				t.Errorf("limit %d: %s is not what was written", maxLine, name)
			}
		}
	}
}

func TestLongLine(t *testing.T) {
	l, path := newLog(t, 0)
	s := NewStream("stdout")
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for chunk := range 64 {
		n := len(want) / 64
		l.Write(s, want[chunk*n:(chunk+1)*n])
	}
	l.End(s)
	lines := parse(t, path)
	if !bytes.Equal(join(lines, "stdout"), want) || len(lines) != len(want)/DefaultMaxLine {
		t.Errorf("%d lines, or their bytes differ", len(lines))
	}
}

// TestReopen rotates while two streams write.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "0")}
	l := New(open(t, paths[0]), 0, &Buffers{})
	const count = 4000
	var wg sync.WaitGroup
	for _, name := range []string{"stdout", "stderr"} {
		wg.Go(func() {
			s := NewStream(name)
			for i := range count {
				l.Write(s, fmt.Appendf(nil, "line %d\npart", i))
				l.Write(s, []byte(" of a line\n"))
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(time.Millisecond):
		}
		paths = append(paths, filepath.Join(dir, fmt.Sprint(len(paths))))
		if !l.Reopen(open(t, paths[len(paths)-1])) {
			t.Fatal("log is closed")
		}
	}
	l.Close()
	lines := parse(t, paths...)
	next := map[string]int{}
	for i := 0; i < len(lines); i++ {
		n := next[lines[i].stream]
		want := fmt.Sprintf("line %d", n/2)
		if n%2 == 1 {
			want = "part of a line"
		}
		if string(lines[i].content) != want {
			t.Fatalf("line %d is %q, want %q", i, lines[i].content, want)
		}
		next[lines[i].stream]++
	}
	for _, name := range []string{"stdout", "stderr"} {
		if next[name] != 2*count {
			t.Errorf("%s has %d lines, want %d", name, next[name], 2*count)
		}
	}
	if len(paths) < 4 {
		t.Errorf("only %d files", len(paths))
	}
	if l.Reopen(open(t, paths[0])) {
		t.Error("a closed log opens again")
	}
}

// limited makes the files of this process at most n bytes long, as a full
// disk would; only for tests that run alone.
func limited(t *testing.T, n uint64) (lift func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: n, Max: unix.RLIM_INFINITY}, &old); err != nil {
		t.Fatalf("limit file size: %v", err)
	}
	return func() {
		if err := unix.Prlimit(0, unix.RLIMIT_FSIZE, &old, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	l, path := newLog(t, 0)
	s := NewStream("stdout")
	lift := limited(t, 1000) // within a line
	sent := 0
	for ; sent < 100; sent++ {
		l.Write(s, fmt.Appendf(nil, "line %04d\nand more\n", sent))
	}
	lift()
	before := parse(t, path)
	if l.Dropped() == 0 || len(before)+int(l.Dropped()) != 2*sent {
		t.Errorf("%d lines and %d dropped of %d", len(before), l.Dropped(), 2*sent)
	}
	l.Write(s, []byte("room again\n"))
	after := parse(t, path)
	if got := after[len(after)-1]; string(got.content) != "room again" || len(after) != len(before)+1 {
		t.Errorf("%d lines, then %d, the last %q", len(before), len(after), got.content)
	}
}

// TestUncuttable writes to a file that can neither take everything nor be cut.
func TestUncuttable(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	l := New(fd, 0, &Buffers{})
	s := NewStream("stdout")
	l.Write(s, bytes.Repeat([]byte("0123456789\n"), 10000))
	if l.Dropped() == 0 || !l.torn {
		t.Fatalf("dropped %d, torn %v", l.Dropped(), l.torn)
	}
	buf := make([]byte, 1<<20)
	if _, err := r.Read(buf); err != nil {
		t.Fatal(err)
	}
	l.Write(s, []byte("again\n"))
	n, err := r.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if got := string(buf[:n]); !strings.HasPrefix(got, "\n") || !strings.HasSuffix(got, " stdout F again\n") {
		t.Errorf("got %q", got)
	}
}

func TestClosedLogDrops(t *testing.T) {
	l, _ := newLog(t, 0)
	l.Close()
	l.Write(NewStream("stdout"), []byte("a\nb\n"))
	if l.Dropped() != 2 {
		t.Errorf("dropped %d, want 2", l.Dropped())
	}
}

func TestIdleStreamCostsNothing(t *testing.T) {
	l, _ := newLog(t, 0)
	s := NewStream("stdout")
	l.Write(s, make([]byte, 10000))
	l.Write(s, []byte("\n"))
	if cap(s.tail) > keepTail {
		t.Errorf("an idle stream keeps %d bytes", cap(s.tail))
	}
}

func BenchmarkLines(b *testing.B) {
	l := New(open(b, "/dev/null"), 0, &Buffers{})
	defer l.Close()
	s := NewStream("stdout")
	chunk := bytes.Repeat([]byte("a line of some sixty bytes, as programs like to write them....\n"), 512)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		l.Write(s, chunk)
	}
}
