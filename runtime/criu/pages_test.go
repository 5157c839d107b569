package criu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sinkFile is a sink with all files in one.
type sinkFile struct {
	*os.File
	names []string
	sizes []int64
	fail  error
}

func (s *sinkFile) Next(name string) (*os.File, int64, error) {
	at := int64(0)
	for _, n := range s.sizes {
		at += n
	}
	s.names, s.sizes = append(s.names, name), append(s.sizes, 0)
	return s.File, at, s.fail
}

func (s *sinkFile) Moved(n int64) { s.sizes[len(s.sizes)-1] += n }

func newSinkFile(t *testing.T) *sinkFile {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &sinkFile{File: f}
}

// TestPageMover writes files of memory as CRIU does.
func TestPageMover(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 5<<16) // several times what a pipe holds
	for name, files := range map[string][][]byte{
		"none": nil, "one": {large}, "an empty one": {{}}, "several": {large, {}, {}, []byte("abc"), large},
		"as many as there may be": {{}, large, {1}, {2}, {3}, {4}},
	} {
		images, sink := t.TempDir(), newSinkFile(t)
		m, err := newPageMover(images, sink, 6)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		var sizes []int64
		for i, content := range files {
			f, err := os.OpenFile(filepath.Join(images, fmt.Sprintf("pages-%d.img", i+1)), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write(content); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			f.Close()
			names, sizes = append(names, filepath.Base(f.Name())), append(sizes, int64(len(content)))
		}

		if err := m.finish(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		got, err := os.ReadFile(sink.Name())
		if err != nil || !bytes.Equal(got, bytes.Join(files, nil)) || !slices.Equal(sink.names, names) || !slices.Equal(sink.sizes, sizes) {
			t.Errorf("%s: %v, %q with %d, %d bytes in all", name, err, sink.names, sink.sizes, len(got))
		}
		if left, err := os.ReadDir(images); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
}

// TestPageMoverFails has no place for the memory: CRIU must not wait for one.
func TestPageMoverFails(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()

	none := errors.New("no place")
	for name, sink := range map[string]*sinkFile{"full": {File: full}, "refused": {File: full, fail: none}} {
		images := t.TempDir()
		// It fills the pipe and is told that nobody reads, which the shell does not ignore.
		script := fmt.Sprintf("head -c 10000000 /dev/zero >%s/pages-1.img", images)
		begun := time.Now()
		err := Program{Path: program(t, script)}.Dump(t.Context(), Dump{Pid: 1, Images: images, Freezer: "/none", Sink: sink, Processes: 1})
		if err == nil || name == "refused" && !errors.Is(err, none) || !strings.Contains(err.Error(), "save memory") {
			t.Errorf("%s: error %v", name, err)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		if left, err := os.ReadDir(images); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
}
