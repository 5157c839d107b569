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

	"crisp/runtime/keeper/spool"
)

func open(t testing.TB, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// source feeds a stream as a container does.
type source struct {
	*Stream
	log  *Log
	r, w *os.File
}

func newSource(t testing.TB, name string, maxLine int) *source {
	t.Helper()
	f, err := spool.Create(MaxLine(maxLine))
	if err != nil {
		t.Fatal(err)
	}

	sp, err := spool.Open(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		sp.Close()
		for _, f := range []*os.File{f, r, w} {
			f.Close()
		}
	})

	return &source{Stream: NewStream(name, sp), r: r, w: w}
}

// put has data logged, in pieces that fit into the pipe. It stops after an error.
func (s *source) put(t testing.TB, data []byte) error {
	t.Helper()
	for first := true; first || len(data) > 0; first = false {
		n := min(len(data), 32<<10)
		if _, err := s.w.Write(data[:n]); err != nil {
			t.Fatal(err)
		}

		data = data[n:]
		for n > 0 {
			got, err := s.spool.Fill(int(s.r.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			n -= len(got)
			if err := s.log.Write(s.Stream); err != nil {
				return err
			}
		}
	}

	return nil
}

// newLog returns a log in a file with both streams.
func newLog(t testing.TB, maxLine int) (l *Log, out, errs *source, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "0.log")
	l, out, errs = logTo(t, open(t, path), maxLine)
	return l, out, errs, path
}

func logTo(t testing.TB, fd, maxLine int) (l *Log, out, errs *source) {
	t.Helper()
	out, errs = newSource(t, "stdout", maxLine), newSource(t, "stderr", maxLine)
	l, err := New(fd, maxLine, &Buffers{}, out.Stream, errs.Stream)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	out.log, errs.log = l, l
	return l, out, errs
}

func (s *source) end(t testing.TB) {
	t.Helper()
	if err := s.log.End(s.Stream); err != nil {
		t.Fatal(err)
	}
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

// join reassembles a stream's bytes.
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
	_, out, errs, path := newLog(t, 8)
	begin := time.Now()
	out.put(t, []byte("hello\n\nwor"))
	errs.put(t, []byte("12345678\n123456789\n"))
	out.put(t, []byte("ld\ntail\r\x00\xff"))
	out.end(t)
	errs.end(t)
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
		l, out, errs, path := newLog(t, maxLine)
		want := map[string][]byte{}
		streams := []*source{out, errs}
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
			s.put(t, data)
		}

		for _, s := range streams {
			s.end(t)
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
	_, out, _, path := newLog(t, 0)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for chunk := range 64 {
		n := len(want) / 64
		out.put(t, want[chunk*n:(chunk+1)*n])
	}
	out.end(t)
	lines := parse(t, path)
	if !bytes.Equal(join(lines, "stdout"), want) || len(lines) != len(want)/DefaultMaxLine {
		t.Errorf("%d lines, or their bytes differ", len(lines))
	}
}

// TestUnlimitedLine logs lines without a limit, up to the memory bound.
func TestUnlimitedLine(t *testing.T) {
	_, out, errs, path := newLog(t, -1)
	line := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16)
	for _, s := range []*source{out, errs} {
		if err := s.put(t, append(bytes.Clone(line), "\nshort\n"...)); err != nil {
			t.Fatal(err)
		}
		s.end(t)
	}

	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	if n, whole := bytes.Count(log, []byte("\n")), bytes.Count(log, append([]byte(" F "), append(line, '\n')...)); n != 4 || whole != 2 {
		t.Errorf("%d lines in the log, %d of the long ones whole, want 4 and 2", n, whole)
	}

	_, out, _, path = newLog(t, -1)
	if err := out.put(t, append(bytes.Repeat([]byte("x"), maxMaxLine+5), '\n')); err != nil {
		t.Fatal(err)
	}

	out.end(t)
	if lines := parse(t, path); len(lines) != 2 || len(join(lines, "stdout")) != maxMaxLine+6 {
		t.Errorf("a line beyond the bound takes %d lines with %d bytes", len(lines), len(join(lines, "stdout")))
	}
}

// TestReopen rotates while two streams write.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "0")}
	l, out, errs := logTo(t, open(t, paths[0]), 0)
	const count = 4000
	var wg sync.WaitGroup
	for _, s := range []*source{out, errs} {
		wg.Go(func() {
			for i := range count {
				s.put(t, fmt.Appendf(nil, "line %d\npart", i))
				s.put(t, []byte(" of a line\n"))
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
		if ok, err := l.Reopen(open(t, paths[len(paths)-1])); !ok || err != nil {
			t.Fatal("log is closed", err)
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
	if ok, err := l.Reopen(open(t, paths[0])); ok || err != nil {
		t.Error("a closed log opens again", err)
	}
}

// limited limits files of this process to n bytes, to simulate a full disk; not
// for parallel tests.
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

// TestFullDisk expects no line lost or torn when there is room again.
func TestFullDisk(t *testing.T) {
	l, out, _, path := newLog(t, 0)
	lift := limited(t, 1000) // within a line
	var want []byte
	for err := error(nil); err == nil; {
		line := fmt.Appendf(nil, "line %d\nand more\n", len(want))
		want = append(want, line...)
		err = out.put(t, line)
	}

	parse(t, path) // nothing torn
	if err := l.Write(out.Stream); err == nil {
		t.Error("a full disk takes a line")
	}

	lift()
	if err := out.put(t, []byte("room again\n")); err != nil {
		t.Error(err)
	}
	if got := join(parse(t, path), "stdout"); string(got) != string(want)+"room again\n" || l.Dropped() != 0 {
		t.Errorf("%d lines dropped; the log says\n%s", l.Dropped(), got)
	}
}

func TestDrop(t *testing.T) {
	l, out, _, path := newLog(t, 0)
	lift := limited(t, 80) // enough for the spool
	if err := out.put(t, []byte("one\ntwo\nthr")); err == nil {
		t.Error("a full disk takes a line")
	}
	l.Drop(out.Stream)
	lift()
	if err := out.put(t, []byte("ee\n")); err != nil || l.Dropped() != 2 {
		t.Errorf("%d dropped, error %v", l.Dropped(), err)
	}
	if got := join(parse(t, path), "stdout"); string(got) != "three\n" {
		t.Errorf("got %q", got)
	}
}

// TestNoFile logs to a file without a size.
func TestNoFile(t *testing.T) {
	l, out, errs := logTo(t, open(t, os.DevNull), 0)
	for _, s := range []*source{out, errs} {
		if err := s.put(t, bytes.Repeat([]byte("0123456789\n"), 10000)); err != nil {
			t.Error(err)
		}
	}
	if l.Dropped() != 0 || out.spool.Seq() != 0 {
		t.Errorf("%d dropped, write %d", l.Dropped(), out.spool.Seq())
	}
}

func TestClosedLogDrops(t *testing.T) {
	l, out, _, _ := newLog(t, 0)
	l.Close()
	if err := out.put(t, []byte("a\nb\n")); err != nil || l.Dropped() != 2 {
		t.Errorf("dropped %d, want 2; error %v", l.Dropped(), err)
	}
	if fd, err := l.Copy(); fd != -1 || err != nil {
		t.Errorf("copy %d, %v", fd, err)
	}
}

func BenchmarkLines(b *testing.B) {
	for name, line := range map[string]string{
		"short": "2026 counted\n",
		"usual": "a line of some sixty bytes, as programs like to write them....\n",
		"long":  strings.Repeat("x", 4000) + "\n",
	} {
		b.Run(name, func(b *testing.B) {
			_, out, _ := logTo(b, open(b, os.DevNull), 0)
			chunk := bytes.Repeat([]byte(line), 32<<10/len(line))
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				if err := out.put(b, chunk); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestFailedWriteIsRetracted has one stream fail and the other continue: the
// next keeper must know that the first one's lines are not in the log.
func TestFailedWriteIsRetracted(t *testing.T) {
	_, out, errs, path := newLog(t, 0)
	lift := limited(t, 80) // enough for the spool and for one line
	if err := out.put(t, []byte("one\ntwo\nthr")); err == nil {
		t.Error("a full disk takes two lines")
	}

	if err := errs.put(t, []byte("err\n")); err != nil {
		t.Error(err)
	}
	lift()

	spools := []int{out.spool.FD(), errs.spool.FD()}
	if err := spool.Recover(spools, []int{open(t, path)}); err != nil {
		t.Fatal(err)
	}

	for fd, want := range map[int]string{spools[0]: "one\ntwo\nthr", spools[1]: ""} {
		next, err := spool.Open(fd)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(next.Held()); got != want {
			t.Errorf("%q is left, want %q", got, want)
		}
		next.Close()
	}
}

// TestTornWriteIsCutLater has a keeper die in the middle of a write, and the next one
// unable to cut it off: it takes the stream over, and writes nothing before it can.
func TestTornWriteIsCutLater(t *testing.T) {
	const earlier, torn = "2026-01-01T00:00:00.000000001Z stdout F earlier\n", "2026-01-01T00:00:00.0000"
	for name, elsewhere := range map[string]bool{"same file": false, "another file": true} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			if err := os.WriteFile(path, []byte(earlier+torn), 0o600); err != nil {
				t.Fatal(err)
			}
			out := newSource(t, "stdout", 0)
			if _, err := out.w.WriteString("the line\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := out.spool.Fill(int(out.r.Fd())); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				t.Fatal(err)
			}
			w := spool.Write{Seq: 1, Dev: uint64(st.Dev), Ino: st.Ino, Offset: int64(len(earlier)), Length: 60}
			if err := out.spool.Intend(w, len("the line\n")); err != nil {
				t.Fatal(err)
			}

			// A descriptor that only reads stands for a file system that has become
			// read-only: what it refuses is refused in the same calls.
			refused, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := spool.Recover([]int{out.spool.FD()}, []int{refused}); err != nil {
				t.Fatalf("the stream is not taken over: %v", err)
			}

			next, err := spool.Open(out.spool.FD())
			if err != nil {
				t.Fatal(err)
			}
			defer next.Close()

			stream := NewStream("stdout", next)
			l, err := New(refused, 0, &Buffers{}, stream)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := l.Write(stream); err == nil {
				t.Error("a write to a file that refuses it succeeds")
			}

			want := earlier
			if elsewhere {
				path, want = filepath.Join(t.TempDir(), "1.log"), ""
			}
			if _, err := l.Reopen(open(t, path)); err != nil {
				t.Fatal(err)
			}
			if err := l.Write(stream); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if rest, ok := strings.CutPrefix(string(data), want); !ok || strings.Count(rest, "\n") != 1 || !strings.HasSuffix(rest, " stdout F the line\n") {
				t.Errorf("the log contains %q", data)
			}
		})
	}
}

// TestTornWriteOfAStreamThatLeft has a stream end before its torn write can be cut
// off. Its spool's descriptor is another file's then.
func TestTornWriteOfAStreamThatLeft(t *testing.T) {
	const earlier, torn = "2026-01-01T00:00:00.000000001Z stdout F earlier\n", "2026-01-01T00:00:00.0000"
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(earlier+torn), 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	out := newSource(t, "stdout", 0)
	if _, err := out.w.WriteString("the line\n"); err != nil {
		t.Fatal(err)
	}
	_, err := out.spool.Fill(int(out.r.Fd()))
	if err == nil {
		err = out.spool.Intend(spool.Write{Seq: 1, Dev: uint64(st.Dev), Ino: st.Ino, Offset: int64(len(earlier)), Length: 60}, 9)
	}
	if err != nil {
		t.Fatal(err)
	}

	fd, err := unix.FcntlInt(uintptr(out.spool.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	left, err := spool.Open(fd)
	if err != nil {
		t.Fatal(err)
	}
	// A descriptor that only reads stands for a file system that has become read-only.
	refused, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	errs, stream := newSource(t, "stderr", 0), NewStream("stdout", left)
	l, err := New(refused, 0, &Buffers{}, stream, errs.Stream)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	errs.log = l
	if err := l.Write(stream); err == nil {
		t.Error("a write to a file that refuses it succeeds")
	}

	left.Close()
	l.Leave(stream)
	other, err := os.CreateTemp(t.TempDir(), "another's")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Dup3(int(other.Fd()), fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)

	if _, err := l.Reopen(open(t, path)); err != nil {
		t.Error(err)
	}
	if err := errs.put(t, []byte("after it\n")); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(got), earlier+"20") || !strings.HasSuffix(string(got), " stderr F after it\n") || strings.Count(string(got), "\n") != 2 {
		t.Errorf("the log says %q, %v", got, err)
	}
	if info, err := other.Stat(); err != nil || info.Size() > 0 {
		t.Errorf("another's file has %d bytes, %v", info.Size(), err)
	}
}
