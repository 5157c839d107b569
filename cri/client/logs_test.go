package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"crisp/runtime/keeper/crilog"
)

// entry is a line of a log.
func entry(second int, tag, text string) string {
	return fmt.Sprintf("2026-01-02T03:04:%02d.5Z stdout %s %s\n", second, tag, text)
}

func write(t *testing.T, path string, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, entry(1, "F", "one")+entry(2, "P", "tw")+entry(3, "F", "o  ")+"torn\n"+entry(4, "F", "")+"2026-01-02T03:04:05Z stdout F not comp")
	for _, c := range []struct {
		name string
		log  Log
		want string
	}{
		{"all", Log{Tail: -1}, "one|tw+|o  |torn|"},
		{"tail", Log{Tail: 2}, "torn|"},
		{"none", Log{Tail: 0}, "-"},
		{"since", Log{Tail: -1, Since: time.Date(2026, 1, 2, 3, 4, 3, 0, time.UTC)}, "o  |"},
	} {
		var got []string
		c.log.Path = path

		err := c.log.Read(t.Context(), func(l Line) error {
			text := string(l.Text)
			if l.Partial {
				text += "+"
			}
			got = append(got, text)
			return nil
		})
		if len(got) == 0 {
			got = []string{"-"}
		}
		if s := strings.Join(got, "|"); err != nil || s != c.want {
			t.Errorf("%s: %q, %v, want %q", c.name, s, err, c.want)
		}
	}
}

// TestLogIsFollowed follows a log from before it exists over a rotation to the end
// of its container.
func TestLogIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	lines, ended := make(chan string), make(chan struct{})
	done := make(chan error, 1)
	l := Log{Path: path, Tail: -1, Alive: func(context.Context) bool {
		select {
		case <-ended:
			return false
		default:
			return true
		}
	}}
	go func() {
		done <- l.Read(t.Context(), func(l Line) error { lines <- string(l.Text); return nil })
	}()
	want := func(text string) {
		t.Helper()
		select {
		case got := <-lines:
			if got != text {
				t.Errorf("read %q, want %q", got, text)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%q was not read", text)
		}
	}

	write(t, path, entry(1, "F", "one"))
	want("one")
	whole := entry(2, "F", "two")
	write(t, path, whole[:len(whole)-3])
	time.Sleep(2 * pollTime)
	write(t, path, whole[len(whole)-3:])
	want("two")

	write(t, path, entry(3, "F", "three"))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, path, entry(4, "F", "four"))
	want("three")
	want("four")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * pollTime)

	write(t, path, entry(5, "F", "five"))
	want("five")
	write(t, path, entry(6, "F", "six"))
	close(ended)
	want("six")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestLogLine bounds the memory for a line.
func TestLogLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	maxLine, longest := longestLine(), 0
	write(t, path, strings.Repeat("x", 3*maxLine))
	err := Log{Path: path, Tail: -1}.Read(t.Context(), func(l Line) error { longest = max(longest, len(l.Text)); return nil })
	if err != nil || longest < maxLine || longest > maxLine+(64<<10) {
		t.Errorf("a line of %d bytes, %v", longest, err)
	}
}

// TestLongestLine reads lines as long as crisp writes them.
func TestLongestLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("x", crilog.MaxLine(-1))
	write(t, path, entry(1, "F", long)+entry(2, "F", "next"))

	var got []string
	err := Log{Path: path, Tail: -1}.Read(t.Context(), func(l Line) error {
		got = append(got, l.Stream+" "+string(l.Text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0] != "stdout "+long || got[1] != "stdout next" {
		t.Errorf("%d lines, the last %.40q", len(got), got[len(got)-1])
	}
}

// TestLogIsGone reads logs that are not there: the container has not started, or somebody
// has removed the file.
func TestLogIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		none := func(Line) error { return nil }
		path := filepath.Join(t.TempDir(), "log")
		if err := (Log{Path: path, Tail: -1}).Read(t.Context(), none); err != nil {
			t.Errorf("before the start: %v", err)
		}
		if err := (Log{Path: path, Tail: -1, Started: true}).Read(t.Context(), none); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("removed: %v", err)
		}

		// One that is rotated is away for a moment.
		time.AfterFunc(rotateTime/2, func() { write(t, path, entry(1, "F", "new")) })
		var got string
		err := Log{Path: path, Tail: -1, Started: true}.Read(t.Context(), func(l Line) error {
			got += string(l.Text)
			return nil
		})
		if err != nil || got != "new" {
			t.Errorf("rotated: %q, %v", got, err)
		}
	})
}
