package durable

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crisp/test/testkit"
)

// written returns a journal with lines of different lengths, and its text.
func written(t testing.TB, lines ...string) (*Journal, []byte) {
	t.Helper()
	j := NewJournal(filepath.Join(t.TempDir(), "journal"))
	for _, line := range lines {
		if err := errors.Join(j.Append([]byte(line)), j.Sync()); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	return j, text
}

func assertLast(t testing.TB, path, want string) *Journal {
	t.Helper()
	j, data, err := OpenJournal(path)
	if err != nil || string(data) != want {
		t.Fatalf("last line %.40q, %v, want %.40q", data, err, want)
	}
	return j
}

func TestJournalKeepsTheLastLine(t *testing.T) {
	j, text := written(t, `{"a":1}`, `{"a":2,"b":"longer"}`, "", "{}")
	if n := bytes.Count(text, []byte{'\n'}); n != 4 {
		t.Errorf("%d lines for 4 appends", n)
	}
	j = assertLast(t, j.path, "{}")
	if err := j.Append([]byte("after opening")); err != nil {
		t.Fatal(err)
	}
	assertLast(t, j.path, "after opening")
	if st, err := os.Stat(j.path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := j.Append([]byte("two\nlines")); err == nil {
		t.Error("a line feed was taken")
	}
	assertLast(t, j.path, "after opening")
}

func TestJournalIsRenewed(t *testing.T) {
	for _, size := range []int{500, journalSize / 4, journalSize / 2} {
		j := NewJournal(filepath.Join(t.TempDir(), "journal"))
		var longest int64
		for i := range 150 {
			line := fmt.Sprint(i, strings.Repeat("x", size))
			if err := j.Append([]byte(line)); err != nil {
				t.Fatal(err)
			}
			st, err := os.Stat(j.path)
			if err != nil {
				t.Fatal(err)
			}
			longest = max(longest, st.Size())
			assertLast(t, j.path, line)
		}
		limit := int64(max(journalSize, journalTimes*(size+20)))
		if longest > limit || longest < limit/2 {
			t.Errorf("with lines of %d bytes the journal grew to %d", size, longest)
		}
		assertNames(t, filepath.Dir(j.path), "journal")
	}
}

// A journal that was cut anywhere has the last line that is whole, and the
// next one comes right after it.
func TestJournalCutAnywhere(t *testing.T) {
	lines := []string{`{"phase":"one"}`, `{"phase":"two","more":"0123456789"}`, "3"}
	j, text := written(t, lines...)
	first := len(formLine([]byte(lines[0])))
	for n := range len(text) + 1 {
		if err := os.WriteFile(j.path, text[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if n < first {
			if _, data, err := OpenJournal(j.path); !errors.Is(err, ErrDamaged) || data != nil {
				t.Fatalf("%d bytes: %q, %v", n, data, err)
			}
			continue
		}
		want := lines[bytes.Count(text[:n], []byte{'\n'})-1]
		if err := assertLast(t, j.path, want).Append([]byte("next")); err != nil {
			t.Fatal(err)
		}
		assertLast(t, j.path, "next")
		if got, err := os.ReadFile(j.path); err != nil || !bytes.HasSuffix(got, []byte(want+"\n"+string(formLine([]byte("next"))))) {
			t.Fatalf("%d bytes: %q, %v", n, got, err)
		}
	}
}

// What a write that failed has left is not in the way of the next one.
func TestJournalAfterAFailedWrite(t *testing.T) {
	j, _ := written(t, "good")
	// The write got half way and could not be taken back.
	j.torn = true
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(formLine([]byte("a long line that does not fit"))[:20]); err != nil {
		t.Fatal(err)
	}
	f.Close()
	assertLast(t, j.path, "good")
	if err := j.Append([]byte("x")); err != nil {
		t.Fatal(err)
	}
	assertLast(t, j.path, "x")
	if got, err := os.ReadFile(j.path); err != nil || string(got) != string(formLine([]byte("good")))+string(formLine([]byte("x"))) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestJournalOnAFullDisk fills a small file system, in which a write may end
// half way, and makes room again.
func TestJournalOnAFullDisk(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	j := NewJournal(filepath.Join(dir, "journal"))
	if err := j.Append([]byte("0")); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 40<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	last, failed := "0", 0
	for i := range 40 {
		line := strings.Repeat(fmt.Sprint(i%10), 3000)
		err := j.Append([]byte(line))
		switch {
		case err == nil:
			last = line
		case errors.Is(err, syscall.ENOSPC):
			failed++
		default:
			t.Fatal(err)
		}
		assertLast(t, j.path, last)
	}
	if failed == 0 {
		t.Fatal("the disk never was full")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := j.Append([]byte("room")); err != nil {
		t.Fatal(err)
	}
	assertLast(t, j.path, "room")
}

// FuzzJournal flips a bit and cuts the end of a journal: what is read then is
// something that was written, and the last of it unless the end is missing.
func FuzzJournal(f *testing.F) {
	lines := []string{`{"Version":1,"Phase":"make files"}`, `{"Version":1,"Phase":"ready","IPs":["10.0.0.1"]}`, `{"Version":1}`}
	_, text := written(f, lines...)
	for _, at := range []uint{0, 8, 40, 300, uint(len(text)*8 - 3)} {
		f.Add(at, uint(0), []byte(nil))
		f.Add(at, at/8, []byte("00000000 {}\n"))
	}
	f.Fuzz(func(t *testing.T, flip, cut uint, tail []byte) {
		spoilt := bytes.Clone(text)
		if flip < uint(len(spoilt)*8) {
			spoilt[flip/8] ^= 1 << (flip % 8)
		}
		if cut < uint(len(spoilt)) {
			spoilt = spoilt[:uint(len(spoilt))-cut]
		}
		data, end, damaged := lastLine(append(spoilt, tail...))
		if data == nil && end == 0 && damaged {
			return
		}
		if end > len(spoilt) {
			return // a line that the fuzzer has found
		}
		for _, line := range lines {
			if string(data) == line {
				return
			}
		}
		t.Errorf("flip %d, cut %d, tail %q: read %q", flip, cut, tail, data)
	})
}

func BenchmarkJournal(b *testing.B) {
	line := bytes.Repeat([]byte("x"), 1400)
	b.Run("append", func(b *testing.B) {
		j := NewJournal(filepath.Join(b.TempDir(), "journal"))
		for b.Loop() {
			if err := j.Append(line); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("replace", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), "file")
		for b.Loop() {
			if err := ReplaceFile(path, line, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("append and sync", func(b *testing.B) {
		j := NewJournal(filepath.Join(b.TempDir(), "journal"))
		for b.Loop() {
			if err := errors.Join(j.Append(line), j.Sync()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("replace and sync", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), "file")
		for b.Loop() {
			if err := WriteFile(path, line, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	})
}
