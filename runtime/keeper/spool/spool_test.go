package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func create(t *testing.T, maxLine int) *os.File {
	t.Helper()
	f, err := Create(maxLine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func reopen(t *testing.T, f *os.File) *Spool {
	t.Helper()
	s, err := Open(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// pipe returns a pipe that does not block.
func pipe(t *testing.T) (r int, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	w = os.NewFile(uintptr(fds[1]), "pipe")
	t.Cleanup(func() { unix.Close(fds[0]); w.Close() })
	return fds[0], w
}

// TestNextOwnerContinues reopens the spool at any time: it holds the bytes
// between Fill and Advance.
func TestNextOwnerContinues(t *testing.T) {
	const maxLine = 300
	f := create(t, maxLine)
	r, w := pipe(t)
	s := reopen(t, f)
	if _, err := s.Fill(r); err != unix.EAGAIN {
		t.Errorf("empty pipe: %v", err)
	}

	var held []byte
	for i := range 1000 {
		piece := bytes.Repeat(fmt.Appendf(nil, "%d,", i), 1+i%97)
		if _, err := w.Write(piece); err != nil {
			t.Fatal(err)
		}

		got, err := s.Fill(r)
		if err != nil || !bytes.Equal(got, piece) {
			t.Fatalf("filled with %q, %v; want %q", got, err, piece)
		}

		held = append(held, piece...)
		if leave := i * 7 % maxLine; len(held) > leave {
			n := len(held) - leave
			if err := s.Intend(Write{Seq: uint64(i + 1), Ino: 1, Offset: 0, Length: 1}, n); err != nil {
				t.Fatal(err)
			}
			s.Advance(n)
			held = held[n:]
		}

		if i%3 == 0 {
			if err := s.Trim(); err != nil {
				t.Fatal(err)
			}
		}
		if i%5 == 0 {
			s.Close()
			recoverSpool(t, f, done(t))
			s = reopen(t, f)
		}
		if !bytes.Equal(s.Held(), held) {
			t.Fatalf("after %d: held %q, want %q", i, s.Held(), held)
		}
	}
	w.Close()

	if _, err := s.Fill(r); err != io.EOF {
		t.Errorf("closed pipe: %v", err)
	}
}

// done returns a log in which the writes of the test are complete.
func done(t *testing.T) *os.File {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log
}

func recoverSpool(t *testing.T, spool, log *os.File) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(log.Fd()), &st); err != nil {
		t.Fatal(err)
	}

	h, _, err := read(int(spool.Fd()))
	if err != nil {
		t.Fatal(err)
	}

	if h.write.Length > 0 { // make it that file, with the size that the write leaves
		h.write.Dev, h.write.Ino, h.write.Offset, h.write.Length = st.Dev, st.Ino, st.Size, 1
		if err := h.store(int(spool.Fd())); err != nil {
			t.Fatal(err)
		}
		if _, err := log.WriteString("x"); err != nil {
			t.Fatal(err)
		}
	}

	if err := Recover([]int{int(spool.Fd())}, []int{int(log.Fd())}); err != nil {
		t.Fatal(err)
	}
}

// TestCompactInterrupted stops in the middle of the move to the front.
func TestCompactInterrupted(t *testing.T) {
	for stop, name := range []string{"before", "noted", "copied", "position set", "done"} {
		f := create(t, 100)
		fd := int(f.Fd())
		r, w := pipe(t)
		s := reopen(t, f)
		if _, err := w.WriteString("logged and held"); err != nil {
			t.Fatal(err)
		}

		if _, err := s.Fill(r); err != nil {
			t.Fatal(err)
		}
		s.Advance(len("logged and "))

		h := header{start: s.start}
		moves := []func() error{
			func() error { return nil },
			func() error { return h.store(fd) },
			func() error { copy(s.data[base:], s.Held()); return nil },
			func() error { _, err := unix.Seek(fd, base+4, io.SeekStart); return err },
			func() error { h.start = base; return h.store(fd) },
		}

		for _, move := range moves[:stop+1] {
			if err := move(); err != nil {
				t.Fatal(err)
			}
		}

		want := "held"
		if stop == 0 {
			want = "logged and held" // Advance was not recorded
		}
		if got := string(reopen(t, f).Held()); got != want {
			t.Errorf("%s: held %q", name, got)
		}
	}
}

// TestRecover interrupts a write to the log at any point.
func TestRecover(t *testing.T) {
	const before, line = "earlier\n", "the line\n"
	for _, c := range []struct {
		name, log, wantLog, wantHeld string
		elsewhere                    bool
	}{
		{name: "not begun", log: before, wantLog: before, wantHeld: "line+rest"},
		{name: "half", log: before + line[:4], wantLog: before, wantHeld: "line+rest"},
		{name: "whole", log: before + line, wantLog: before + line, wantHeld: "+rest"},
		{name: "emptied meanwhile", log: "", wantLog: "", wantHeld: "+rest"},
		{name: "another file", log: before, wantLog: before, wantHeld: "line+rest", elsewhere: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			log, other, f, idle := done(t), done(t), create(t, 100), create(t, 100)
			r, w := pipe(t)
			s := reopen(t, f)
			if _, err := w.WriteString("line+rest"); err != nil {
				t.Fatal(err)
			}

			if _, err := s.Fill(r); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(int(log.Fd()), &st); err != nil {
				t.Fatal(err)
			}

			// An earlier write of the other stream, to a file that is gone.
			if err := reopen(t, idle).Intend(Write{Seq: 1, Ino: 1, Offset: 100, Length: 1}, 0); err != nil {
				t.Fatal(err)
			}

			write := Write{Seq: 2, Dev: st.Dev, Ino: st.Ino, Offset: int64(len(before)), Length: int64(len(line))}
			if err := s.Intend(write, len("line")); err != nil {
				t.Fatal(err)
			}

			if _, err := log.WriteString(c.log); err != nil {
				t.Fatal(err)
			}
			logs := []int{int(other.Fd()), int(log.Fd())}

			if c.elsewhere {
				logs = logs[:1]
			}
			for range 2 { // the second time changes nothing
				if err := Recover([]int{int(idle.Fd()), int(f.Fd())}, logs); err != nil {
					t.Fatal(err)
				}
			}

			if got := string(reopen(t, f).Held()); got != c.wantHeld {
				t.Errorf("held %q, want %q", got, c.wantHeld)
			}
			if got, err := os.ReadFile(log.Name()); err != nil || string(got) != c.wantLog {
				t.Errorf("log %q, %v; want %q", got, err, c.wantLog)
			}
		})
	}
}

func TestTrimGivesMemoryBack(t *testing.T) {
	f := create(t, 16<<10)
	r, w := pipe(t)
	s := reopen(t, f)
	for range 3 {
		if _, err := w.Write(make([]byte, ReadSize)); err != nil {
			t.Fatal(err)
		}
		got, err := s.Fill(r)
		if err != nil {
			t.Fatal(err)
		}
		s.Advance(len(got) - 10)
	}

	if !s.Bulky() {
		t.Error("nothing to trim")
	}
	if err := s.Trim(); err != nil {
		t.Fatal(err)
	}

	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*512 > pageSize() {
		t.Errorf("%d bytes left, error %v", st.Blocks*512, err)
	}
	if held := s.Held(); !bytes.Equal(held, make([]byte, 30)) {
		t.Errorf("held %q", held)
	}
}

// TestRest trims a spool that holds nothing, and one with an unfinished line:
// only what is held or read keeps it mapped.
func TestRest(t *testing.T) {
	f := create(t, 16<<10)
	r, w := pipe(t)
	s := reopen(t, f)
	if s.data != nil {
		t.Error("a fresh spool is mapped")
	}

	for i, c := range []struct {
		left   int // of the bytes read, when it is trimmed
		mapped bool
	}{{0, false}, {4, true}, {0, false}} {
		line := fmt.Sprintf("the line %d", i)
		if _, err := w.WriteString(line); err != nil {
			t.Fatal(err)
		}
		before := len(s.Held())
		got, err := s.Fill(r)
		if err != nil || string(got) != line {
			t.Fatalf("%d: read %q, error %v; want %q", i, got, err, line)
		}
		s.Advance(before + len(got) - c.left)

		if bulky := s.Bulky(); bulky == c.mapped {
			t.Errorf("%d: something to free: %t", i, bulky)
		}
		if err := s.Trim(); err != nil {
			t.Fatal(err)
		}
		if want := line[len(line)-c.left:]; string(s.Held()) != want || (s.data != nil) != c.mapped {
			t.Errorf("%d: held %q, want %q; mapped: %t, want %t", i, s.Held(), want, s.data != nil, c.mapped)
		}
	}
}

func TestForeignFilesAreRefused(t *testing.T) {
	r, w := pipe(t)
	for _, f := range []int{r, int(w.Fd()), int(done(t).Fd())} {
		if _, err := Open(f); !errors.Is(err, ErrInvalid) {
			t.Errorf("error %v", err)
		}
	}
	f := create(t, 100)
	if _, err := unix.Seek(int(f.Fd()), 1<<40, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(int(f.Fd())); !errors.Is(err, ErrInvalid) {
		t.Errorf("position beyond the end: error %v", err)
	}
}
