package durable

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crisp/test/testkit"
)

// value is a change of one value.
func value(s string) Values {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err) // of a string
	}
	return Values{"v": data}
}

// written returns a journal after some changes, and its text.
func written(t testing.TB, changes ...Values) (*Journal, []byte) {
	t.Helper()
	j := NewJournal(filepath.Join(t.TempDir(), "journal"))
	for _, c := range changes {
		if err := errors.Join(j.Append(c), j.Sync()); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	return j, text
}

func same(a, b Values) bool {
	return maps.EqualFunc(a, b, func(a, b json.RawMessage) bool { return string(a) == string(b) })
}

func assertValues(t testing.TB, path string, want Values) *Journal {
	t.Helper()
	j, got, err := OpenJournal(path)
	if err != nil || !same(got, want) {
		t.Fatalf("values %.80q, %v, want %.80q", got, err, want)
	}
	var live int64
	for name, v := range want {
		live += int64(len(name) + len(v))
	}
	if j.live != live {
		t.Fatalf("%d bytes are counted of %d", j.live, live)
	}
	return j
}

func raw(s string) json.RawMessage { return json.RawMessage(s) }

func TestJournalMergesChanges(t *testing.T) {
	j, text := written(t,
		Values{"a": raw("1"), "never": nil},
		Values{"b": raw(`{"x":[1]}`)},
		Values{"a": raw("2"), "c": raw(`"three"`)},
		Values{},
		Values{"b": nil, "unknown": nil})

	if n := bytes.Count(text, []byte{'\n'}); n != 5 {
		t.Errorf("%d lines for 5 changes", n)
	}

	j = assertValues(t, j.path, Values{"a": raw("2"), "c": raw(`"three"`)})
	if j.Fresh() {
		t.Error("a journal with values is fresh")
	}

	if err := j.Append(Values{"a": nil, "d": raw("4")}); err != nil {
		t.Fatal(err)
	}
	want := Values{"c": raw(`"three"`), "d": raw("4")}
	assertValues(t, j.path, want)

	if st, err := os.Stat(j.path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}

	if err := j.Append(Values{"a": raw("{")}); err == nil {
		t.Error("an invalid value was accepted")
	}
	assertValues(t, j.path, want)
}

// TestJournalRestarts: the old values are gone after the next change, not before.
func TestJournalRestarts(t *testing.T) {
	j, _ := written(t, Values{"a": raw("1")}, Values{"b": raw("2")})
	j.Restart()
	if !j.Fresh() {
		t.Error("it is not fresh")
	}
	assertValues(t, j.path, Values{"a": raw("1"), "b": raw("2")})
	for _, c := range []Values{{"c": raw("3")}, {"d": raw("4")}} {
		if err := j.Append(c); err != nil {
			t.Fatal(err)
		}
	}
	assertValues(t, j.path, Values{"c": raw("3"), "d": raw("4")})
}

func TestJournalIsRenewed(t *testing.T) {
	for _, size := range []int{500, journalSize / 4, journalSize / 2} {
		j := NewJournal(filepath.Join(t.TempDir(), "journal"))
		var longest int64
		for i := range 150 {
			change := value(fmt.Sprint(i, strings.Repeat("x", size)))
			change["last"] = raw(fmt.Sprint(i))
			if i == 0 {
				change["kept"] = raw(`"from the beginning"`)
			}

			if err := j.Append(change); err != nil {
				t.Fatal(err)
			}
			st, err := os.Stat(j.path)
			if err != nil {
				t.Fatal(err)
			}

			longest = max(longest, st.Size())
			change["kept"] = raw(`"from the beginning"`)
			assertValues(t, j.path, change)
		}

		limit := int64(max(journalSize, 2*journalTimes*(size+100)))
		if longest > limit || longest < limit/3 {
			t.Errorf("with lines of %d bytes the journal grew to %d", size, longest)
		}
		assertNames(t, filepath.Dir(j.path), "journal")
	}
}

// TestJournalGrowsWithItsValues: without replaced values nothing is written
// twice, however large the journal is.
func TestJournalGrowsWithItsValues(t *testing.T) {
	j := NewJournal(filepath.Join(t.TempDir(), "journal"))
	long, _ := json.Marshal(strings.Repeat("x", journalSize))
	var last os.FileInfo
	for i := range 20 {
		if err := j.Append(Values{fmt.Sprint(i): long}); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(j.path)
		if err != nil {
			t.Fatal(err)
		}

		if last != nil && !os.SameFile(last, st) {
			t.Fatalf("rewritten at value %d", i)
		}
		last = st
	}
}

// A journal that was cut anywhere has the complete changes, and the next one
// follows right after them.
func TestJournalCutAnywhere(t *testing.T) {
	changes := []Values{{"phase": raw(`"one"`), "id": raw("7")}, {"phase": raw(`"two"`), "more": raw(`"0123456789"`)}, {"more": nil}}
	states := []Values{changes[0], {"phase": raw(`"two"`), "id": raw("7"), "more": raw(`"0123456789"`)}, {"phase": raw(`"two"`), "id": raw("7")}}
	j, text := written(t, changes...)
	first := bytes.IndexByte(text, '\n') + 1

	next := Values{"next": raw("true")}
	line, err := formLine(next, true)
	if err != nil {
		t.Fatal(err)
	}

	for n := range len(text) + 1 {
		if err := os.WriteFile(j.path, text[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if n < first {
			if _, values, err := OpenJournal(j.path); !errors.Is(err, ErrDamaged) || values != nil {
				t.Fatalf("%d bytes: %q, %v", n, values, err)
			}
			continue
		}

		want := maps.Clone(states[bytes.Count(text[:n], []byte{'\n'})-1])
		if err := assertValues(t, j.path, want).Append(next); err != nil {
			t.Fatal(err)
		}

		whole := text[:bytes.LastIndexByte(text[:n], '\n')+1]
		if got, err := os.ReadFile(j.path); err != nil || string(got) != string(whole)+string(line) {
			t.Fatalf("%d bytes: %q, %v", n, got, err)
		}
		want["next"] = next["next"]
		assertValues(t, j.path, want)
	}
}

// TestJournalWithAGap has a corrupt line in the middle: changes after it may
// depend on it, so only a line with all values makes up for it.
func TestJournalWithAGap(t *testing.T) {
	j, text := written(t, value("one"), value("two"), value("three"))
	lines := bytes.SplitAfter(text, []byte{'\n'})
	gap := []byte("00000000 +{}\n")
	whole, err := formLine(value("whole"), false)
	if err != nil {
		t.Fatal(err)
	}

	for name, tc := range map[string]struct {
		text    [][]byte
		want    Values
		damaged bool
	}{
		"gap":               {[][]byte{lines[0], gap, lines[2]}, value("one"), true},
		"gap at the end":    {[][]byte{lines[0], lines[1], gap}, value("two"), true},
		"gap made up for":   {[][]byte{lines[0], gap, whole, lines[2]}, value("three"), false},
		"first is a change": {[][]byte{lines[1], lines[2]}, nil, true},
		"first is a gap":    {[][]byte{gap, whole}, value("whole"), false},
	} {
		if err := os.WriteFile(j.path, bytes.Join(tc.text, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		opened, got, err := OpenJournal(j.path)
		if !same(got, tc.want) || errors.Is(err, ErrDamaged) != tc.damaged {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if opened.Fresh() != (tc.want == nil) {
			t.Errorf("%s: fresh: %t", name, opened.Fresh())
		}

		if err := opened.Append(value("next")); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		assertValues(t, j.path, value("next"))
	}
}

// TestJournalRenewedAfterAGap: a corrupt line that was dropped does not prevent
// a change that rewrites the journal.
func TestJournalRenewedAfterAGap(t *testing.T) {
	j, _ := written(t, Values{"kept": raw("1")})
	for range 9 {
		if err := j.Append(value(strings.Repeat("x", journalSize/10))); err != nil {
			t.Fatal(err)
		}
	}

	text, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(j.path, append(text, "00000000 +{}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}

	j, _, err = OpenJournal(j.path)
	if !errors.Is(err, ErrDamaged) {
		t.Fatalf("opened with %v", err)
	}

	change := value(strings.Repeat("y", journalSize/10)) // more than there is room for
	if err := j.Append(change); err != nil {
		t.Fatal(err)
	}

	change["kept"] = raw("1")
	assertValues(t, j.path, change)
	if text, err = os.ReadFile(j.path); err != nil || bytes.Count(text, []byte{'\n'}) != 1 {
		t.Errorf("it was not rewritten: %.40q, %v", text, err)
	}
}

// The leftovers of a failed write do not affect the next one.
func TestJournalAfterAFailedWrite(t *testing.T) {
	j, text := written(t, value("good"))
	// The write was partial and could not be undone.
	j.torn = true
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}

	long, err := formLine(value("a long line that does not fit"), true)
	if err != nil {
		t.Fatal(err)
	}

	if _, err := f.Write(long[:20]); err != nil {
		t.Fatal(err)
	}
	f.Close()
	assertValues(t, j.path, value("good"))
	if err := j.Append(value("x")); err != nil {
		t.Fatal(err)
	}

	assertValues(t, j.path, value("x"))
	next, err := formLine(value("x"), true)
	if err != nil {
		t.Fatal(err)
	}

	if got, err := os.ReadFile(j.path); err != nil || string(got) != string(text)+string(next) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestJournalCorruptedWhileOpen corrupts what a change that rewrites the
// journal has to read: it is refused, and so is the next one.
func TestJournalCorruptedWhileOpen(t *testing.T) {
	j, text := written(t, Values{"kept": raw("1")}, value(strings.Repeat("x", journalSize/2)))
	text[len(text)/2] ^= 1
	if err := os.WriteFile(j.path, text, 0o600); err != nil {
		t.Fatal(err)
	}

	var refused error
	for range 10 {
		if err := j.Append(value(strings.Repeat("y", journalSize/4))); err != nil {
			refused = err
			break
		}
	}

	if !errors.Is(refused, ErrDamaged) {
		t.Errorf("the journal was rewritten without its values: %v", refused)
	}
}

// TestJournalOnAFullDisk fills a small file system, where writes may be
// partial, and makes room again.
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
	if err := j.Append(value("0")); err != nil {
		t.Fatal(err)
	}

	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 40<<10), 0o600); err != nil {
		t.Fatal(err)
	}

	last, failed := value("0"), 0
	for i := range 40 {
		change := value(strings.Repeat(fmt.Sprint(i%10), 3000))
		err := j.Append(change)
		switch {
		case err == nil:
			last = change
		case errors.Is(err, syscall.ENOSPC):
			failed++
		default:
			t.Fatal(err)
		}
		assertValues(t, j.path, last)
	}

	if failed == 0 {
		t.Fatal("the disk was never full")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}

	if err := j.Append(value("room")); err != nil {
		t.Fatal(err)
	}
	assertValues(t, j.path, value("room"))
}

// FuzzJournal flips a bit and cuts the end of a journal: the values read are
// those after one of the changes.
func FuzzJournal(f *testing.F) {
	changes := []Values{{"a": raw("1"), "b": raw(`"make files"`)}, {"b": raw(`"ready"`), "c": raw(`["10.0.0.1"]`)}, {"c": nil}}
	_, text := written(f, changes...)
	var states []Values
	values := Values{}
	for _, c := range changes {
		merge(values, c)
		states = append(states, maps.Clone(values))
	}

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

		values, end, damaged := readLines(append(spoilt, tail...))
		if values == nil && end == 0 && damaged {
			return
		}
		if end > len(spoilt) {
			return // the fuzzer found a valid line
		}

		for _, state := range states {
			if same(values, state) {
				return
			}
		}
		t.Errorf("flip %d, cut %d, tail %q: read %q", flip, cut, tail, values)
	})
}

func BenchmarkJournal(b *testing.B) {
	line := bytes.Repeat([]byte("x"), 1400)
	change := value(string(line))
	b.Run("append", func(b *testing.B) {
		j := NewJournal(filepath.Join(b.TempDir(), "journal"))
		for b.Loop() {
			if err := j.Append(change); err != nil {
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
			if err := errors.Join(j.Append(change), j.Sync()); err != nil {
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
