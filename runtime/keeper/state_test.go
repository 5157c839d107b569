package keeper

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire"
)

// savedByLast is the content of testdata/state-1, written by a keeper of state version 1.
func savedByLast() *saved {
	ns, stdout, stderr := wire.Namespace, wire.Streams()[0], wire.Streams()[1]
	return &saved{oomScoreAdj: "-5", entries: []savedEntry{
		{
			id: "pod", kind: wire.Sandbox, at: 1700000000000000001, pid: 101, number: 35,
			files: wire.Files{{Role: wire.PidFD, FD: 10}, {Role: ns.Of("net"), FD: 11}, {Role: ns.Of("ipc"), FD: 12}, {Role: ns.Of("uts"), FD: 13}},
		},
		{
			id: "web", kind: wire.Container, at: 1700000000000000002, pid: 102, maxLine: 16384, dropped: 7,
			number: 36, logs: 2, keptNames: []string{"10.i0", ""},
			files: wire.Files{
				{Role: wire.PidFD, FD: 14}, {Role: wire.Log, FD: 15}, {Role: wire.Kept.Of("stdin"), FD: 16}, {Role: wire.Kept.Of("other"), FD: 17},
				{Role: stdout.Pipe, FD: 18}, {Role: stdout.Spool, FD: 19}, {Role: stdout.Sinks, FD: 20}, {Role: stdout.Sinks, FD: 21},
				{Role: stderr.Pipe, FD: 22}, {Role: stderr.Spool, FD: 23},
			},
		},
		{
			id: "tty", kind: wire.Container, adopted: true, at: 1700000000000000003, pid: 103, maxLine: -1,
			files: wire.Files{
				{Role: wire.PidFD, FD: 24}, {Role: wire.Terminal, FD: 25}, {Role: wire.Log, FD: 26},
				{Role: stdout.Pipe, FD: 27}, {Role: stdout.Spool, FD: 28},
			},
		},
		{
			id: "job", kind: wire.Exec, at: 1700000000000000004, pid: 104,
			ended: true, exited: true, status: 3 << 8, endedAt: 1700000000000000005,
			files: wire.Files{{Role: wire.PidFD, FD: 29}},
		},
		{id: "bare", kind: wire.Sandbox, at: 1700000000000000006, files: wire.Files{{Role: ns.Of("uts"), FD: 30}}},
	}}
}

// readBytes reads a state.
func readBytes(t *testing.T, data []byte) (*saved, error) {
	t.Helper()
	return readState(ownState(t, data))
}

// ownState returns a descriptor of a state, which its reader closes.
func ownState(t *testing.T, data []byte) int {
	t.Helper()
	f, err := stateFile(data)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	own, err := wire.Files{{Role: wire.Log, FD: int(f.Fd())}}.Copy()
	if err != nil {
		t.Fatal(err)
	}
	return own[0].FD
}

// TestStates reads the states that a keeper of the last release and this one leave.
func TestStates(t *testing.T) {
	last, err := os.ReadFile("testdata/state-1")
	if err != nil {
		t.Fatal(err)
	}

	for name, data := range map[string][]byte{"version 1": last, "this version": savedByLast().encode()} {
		if got, err := readBytes(t, data); err != nil || !reflect.DeepEqual(got, savedByLast()) {
			t.Errorf("%s: got %+v, want %+v, error %v", name, got, savedByLast(), err)
		}
		for n := range data {
			if _, err := readBytes(t, data[:n]); err == nil {
				t.Errorf("%s cut to %d bytes is read", name, n)
			}
		}
	}

	if _, err := readBytes(t, []byte{stateVersion + 1}); !errors.Is(err, wire.ErrVersion) {
		t.Errorf("a later version: error %v", err)
	}
}

// TestStateLacksDescriptors expects an error for entries without needed
// descriptors, so that the old program continues.
func TestStateLacksDescriptors(t *testing.T) {
	for name, change := range map[string]func(*wire.Files){
		"no pidfd":         func(f *wire.Files) { f.Take(wire.PidFD) },
		"no log":           func(f *wire.Files) { f.Take(wire.Log) },
		"no spool":         func(f *wire.Files) { f.Take(wire.Streams()[1].Spool) },
		"two logs":         func(f *wire.Files) { f.Add(wire.Log, 31) },
		"one of later use": func(f *wire.Files) { f.Add("colour", 31) },
	} {
		s := savedByLast()
		change(&s.entries[1].files)
		if _, err := readBytes(t, s.encode()); !errors.Is(err, wire.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestDescription reads a description stored by a keeper of the last release;
// this one stores the same.
func TestDescription(t *testing.T) {
	stored, err := os.ReadFile("testdata/description-1")
	if err != nil {
		t.Fatal(err)
	}

	s, list, err := readMeta(ownState(t, stored))
	want := savedEntry{id: "web", kind: wire.Container, adopted: true, at: 1700000000000000002, pid: 102}
	if err != nil || !reflect.DeepEqual(s, want) {
		t.Errorf("got %+v, want %+v, error %v", s, want, err)
	}

	stdout, stderr := wire.Streams()[0], wire.Streams()[1]
	if want := []identity{
		{wire.PidFD, 1, 2}, {wire.Terminal, 3, 4}, {wire.Namespace.Of("net"), 5, 6}, {wire.Kept.Of("stdin"), 7, 8},
		{stdout.Pipe, 9, 10}, {stdout.Spool, 11, 12}, {stderr.Pipe, 13, 14}, {stderr.Spool, 15, 16}, {wire.Log, 17, 1 << 40},
	}; !reflect.DeepEqual(list, want) {
		t.Errorf("got %+v, want %+v", list, want)
	}

	// The same except for the descriptors' inodes.
	e := &entry{id: "web", kind: wire.Container, at: time.Unix(0, s.at), proc: &proc{pid: 102}}
	text, err := e.meta(wire.Files{{Role: wire.PidFD, FD: 0}})
	if head := bytes.Index(stored, []byte("\x09\x05pidfd")); err != nil || !bytes.HasPrefix(text, append(bytes.Clone(stored[:head]), "\x01\x05pidfd"...)) {
		t.Errorf("it is stored as %q, was %q, error %v", text, stored, err)
	}
}

// TestRegain restores stored entries, with descriptors in any order, and closes
// those it cannot use.
func TestRegain(t *testing.T) {
	k, _ := storing(t)
	net, stdin := wire.Namespace.Of("net"), wire.Kept.Of("stdin")
	for name, roles := range map[string][]wire.Role{
		"pod":                {net, stdin},
		"stream without log": {net, stdin, wire.Streams()[0].Pipe},
		"of later use":       {net, stdin, "colour"},
	} {
		files := opened(t, roles...)
		numbers := files.Numbers()
		e := &entry{id: "pod", kind: wire.Sandbox, at: time.Unix(0, 5)}
		text, err := e.meta(files)
		if err != nil {
			t.Fatal(err)
		}

		r := &returned{stored: *newStored(3), meta: ownState(t, text), log: -1, keptNames: map[int]string{files.FD(stdin): "3.i0"}}
		for _, fd := range numbers {
			r.others = append([]int{fd}, r.others...)
		}
		err = k.regainEntry(r)
		if got := k.entries["pod"]; got != nil {
			if name != "pod" || !reflect.DeepEqual(got.held, files) || got.stored.kept["stdin"] != "3.i0" || got.at.UnixNano() != 5 {
				t.Errorf("%s: got %+v, want files %v", name, got, files)
			}
			k.abandon(got)
		} else if name == "pod" || !errors.Is(err, wire.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}

		for _, fd := range numbers {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
				t.Errorf("%s: descriptor %d is left open", name, fd)
			}
		}
	}
}

// opened makes a file for each role.
func opened(t *testing.T, roles ...wire.Role) (files wire.Files) {
	t.Helper()
	for _, r := range roles {
		fd, err := unix.MemfdCreate(string(r[:3]), unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		files.Add(r, fd)
	}
	return files
}
