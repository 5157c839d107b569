package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/peer"

	"crisp/test/testkit"
)

// open returns a log in a new file, and the number of its lost lines.
func open(t *testing.T) (l *Log, path string, lost *atomic.Int64) {
	t.Helper()
	path, lost = filepath.Join(t.TempDir(), "logs", "audit.log"), new(atomic.Int64)
	l = New(t.Context(), func(n int) { lost.Add(int64(n)) })
	if err := l.Set(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return l, path, lost
}

// ends are the records of calls that have ended.
func ends(list []Record) []Record {
	return slices.DeleteFunc(list, func(r Record) bool { return r.Call == Start || r.Result == resultBegin })
}

// read returns the lines of files, each of which must be a record of its own.
func read(t *testing.T, paths ...string) []Record {
	t.Helper()
	var list []Record
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(data) {
			var r Record
			if err := json.Unmarshal(line, &r); err != nil || line[len(line)-1] != '\n' {
				t.Errorf("%s has the line %q: %v", path, line, err)
			}
			list = append(list, r)
		}
	}
	return list
}

// TestLine expects what was done in a line, which only root can read.
func TestLine(t *testing.T) {
	l, path, lost := open(t)
	caller := &Caller{UID: 1, PID: 7, Program: "/usr/bin/kubelet"}
	l.Begin(Record{Call: Exec, Caller: caller, Client: "127.0.0.1:9", Namespace: "a", Pod: "b", Container: "c", TTY: true}, []string{"sh", "-c", "x y"})(3, nil)
	l.Begin(Record{Call: Attach, Pod: "b"}, nil)(0, nil)
	l.Begin(Record{Call: PortForward, Pod: "b", Port: 80}, nil)(0, errors.New("refused\nresult: ok"))
	l.Close()

	all := read(t, path)
	if len(all) != 7 || lost.Load() != 0 || all[0].Call != Start {
		t.Fatalf("%d lines, %d lost, the first is %+v", len(all), lost.Load(), all[0])
	}
	for i := 1; i < len(all); i += 2 {
		begin, end := all[i], all[i+1]
		if begin.Result != resultBegin || begin.Session == "" || begin.Session != end.Session || begin.ExitCode != nil || begin.Error != "" || time.Since(begin.Time) > time.Minute {
			t.Errorf("%+v begins, %+v ends", begin, end)
		}
		end.Time, end.Result, end.ExitCode, end.Error, end.Seconds = begin.Time, resultBegin, nil, "", 0
		if !reflect.DeepEqual(begin, end) {
			t.Errorf("a call begins as %+v and ends as %+v", begin, end)
		}
		if i > 1 && begin.Session == all[i-1].Session {
			t.Errorf("two calls are %s", begin.Session)
		}
	}

	got := ends(all)
	exec, attach, forward := got[0], got[1], got[2]
	if exec.Result != "exit" || *exec.ExitCode != 3 || *exec.Caller != *caller || strings.Join(exec.Command, "|") != "sh|-c|x y" || !exec.TTY || time.Since(exec.Time) > time.Minute {
		t.Errorf("exec is %+v", exec)
	}
	if attach.Result != "ok" || attach.ExitCode != nil || attach.Caller != nil || attach.Command != nil {
		t.Errorf("attach is %+v", attach)
	}
	if forward.Result != "error" || forward.Error != `refused\u000aresult: ok` || forward.Port != 80 {
		t.Errorf("port-forward is %+v", forward)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, %v", st.Mode(), err)
	}
}

// TestHostileCommands tries to forge lines, to hide, and to fill the disk.
func TestHostileCommands(t *testing.T) {
	l, path, _ := open(t)
	commands := [][]string{
		{"sh\n{\"call\":\"exec\",\"command\":[\"forged\"]}"}, {"\"}\n{\"call\":\"forged\"}\n"}, {"\r\x1b[2K\x1b[1A"}, {"\u2028\u2029\u0085\u202e"},
		{"\xff\xfe", "\x00"}, {strings.Repeat("x", 1<<20)}, strings.Split(strings.Repeat("\n ", 100_000), " "), {},
	}
	for _, c := range commands {
		l.Begin(Record{Call: Exec, Pod: "p"}, c)(0, nil)
	}
	l.Close()

	got := ends(read(t, path))
	if len(got) != len(commands) {
		t.Fatalf("%d lines for %d commands", len(got), len(commands))
	}
	for i, r := range got {
		text := strings.Join(r.Command, "")
		if r.Call != Exec || strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c == '\u2028' || c == '\u202e' }) || len(text) > maxCommand {
			t.Errorf("command %d is %.100q, %d bytes", i, text, len(text))
		}
		if cut := i == 5 || i == 6; r.CommandCut != cut {
			t.Errorf("command %d: cut %v", i, r.CommandCut)
		}
	}
	if a, b := got[4].Command[0], got[4].Command[1]; a != `\xff\xfe` || b != `\u0000` {
		t.Errorf("bytes are %q and %q", a, b)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > 400<<10 {
		t.Errorf("the file has %d bytes, %v", st.Size(), err)
	}
}

// TestRepeats counts probes instead of writing them, but nothing that differs.
func TestRepeats(t *testing.T) {
	l := New(t.Context(), func(int) {})
	defer l.Close()
	now := time.Now()
	probe := func(after time.Duration, change func(*Record)) (written bool, repeats int) {
		r := Record{Call: ExecSync, ContainerID: "c", Command: []string{"probe"}, Result: resultOK, Client: fmt.Sprint(after), Seconds: after.Seconds()}
		r.Time = now.Add(after)
		if change != nil {
			change(&r)
		}
		return !l.repeated(&r), r.Repeats
	}

	for _, tt := range []struct {
		after   time.Duration
		change  func(*Record)
		written bool
		repeats int
	}{
		{0, nil, true, 0}, {time.Second, nil, false, 0}, {2 * time.Second, nil, false, 0},
		{3 * time.Second, func(r *Record) { r.Command = []string{"other"} }, true, 0},
		{4 * time.Second, func(r *Record) { r.end(1, nil, r.Time, r.Time) }, true, 0},
		{4 * time.Second, func(r *Record) { r.end(77, nil, r.Time, r.Time) }, false, 0},
		{4 * time.Second, func(r *Record) { r.end(0, errors.New("no"), r.Time, r.Time) }, true, 0},
		{4 * time.Second, func(r *Record) { r.end(0, errors.New("yes"), r.Time, r.Time) }, false, 0},
		{5 * time.Second, func(r *Record) { r.Caller = &Caller{PID: 9} }, true, 0},
		{6 * time.Second, func(r *Record) { r.ContainerID = "d" }, true, 0},
		{repeatTime, nil, true, 2}, {repeatTime + time.Second, nil, false, 0},
	} {
		if written, repeats := probe(tt.after, tt.change); written != tt.written || repeats != tt.repeats {
			t.Errorf("after %v: written %v with %d repeats, want %v with %d", tt.after, written, repeats, tt.written, tt.repeats)
		}
	}

	for i := range 2 * maxRepeats {
		if written, _ := probe(0, func(r *Record) { r.ContainerID = fmt.Sprint(i) }); !written {
			t.Fatalf("probe %d was not written", i)
		}
	}
	if len(l.repeats) > maxRepeats {
		t.Errorf("%d probes are remembered", len(l.repeats))
	}
	if r := (&Record{Call: Exec}); r.often() {
		t.Error("commands of people are counted, not written")
	}
}

// TestSlowDisk never waits for the disk: what it has no time for is lost and counted.
func TestSlowDisk(t *testing.T) {
	lost := 0
	l := &Log{lost: func(n int) { lost += n }, lines: make(chan []byte, maxWaiting)} // nobody writes
	l.on.Store(true)
	for range maxWaiting/2 + 5 {
		l.Begin(Record{Call: Exec}, []string{"true"})(0, nil) // two lines
	}
	if lost != 10 {
		t.Errorf("%d lines are lost, want 10", lost)
	}
}

// TestFullDisk has whole lines only, before and after the disk was full.
func TestFullDisk(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("audit", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 48<<10), 0o600); err != nil {
		t.Fatal(err)
	}

	var lost atomic.Int64
	l := New(t.Context(), func(n int) { lost.Add(int64(n)) })
	path := filepath.Join(dir, "audit.log")
	if err := l.Set(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	const lines = 50 // of a call, each of which has two
	write := func() {
		for range lines {
			l.Begin(Record{Call: Exec}, []string{strings.Repeat("x", 300)})(0, nil)
		}
		if err := l.Set(t.Context(), path); err != nil { // also waits for what was queued before
			t.Fatal(err)
		}
		for len(l.lines) > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	write()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	write()
	l.Close()

	const all = 1 + 2*2*lines
	if got := len(read(t, path)); lost.Load() == 0 || got+int(lost.Load()) != all || got < 2*lines {
		t.Errorf("%d of %d lines were written, %d lost", got, all, lost.Load())
	}
}

// TestTorn begins a line of its own after an incomplete one.
func TestTorn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, []byte("{\"call\":\"exec\"}\n{\"call\":\"ex"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := openFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.write([]byte("{}\n")); err != nil {
			t.Fatal(err)
		}
	}
	f.close()

	data, err := os.ReadFile(path)
	if st, serr := os.Stat(path); err != nil || serr != nil || st.Mode().Perm() != 0o600 || !strings.HasSuffix(string(data), "{\"call\":\"ex\n{}\n{}\n") {
		t.Errorf("%q, mode %v, %v", data, st.Mode(), err)
	}
}

// TestRotation keeps so many files of so many bytes, all root's alone.
func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	f, err := openFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { f.close() }()
	f.most = 1000
	for i := range 1000 {
		if err := f.write(fmt.Appendf(nil, "{\"port\":%d}\n", i)); err != nil {
			t.Fatal(err)
		}
	}

	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != maxFiles {
		t.Errorf("%d files, %v", len(entries), err)
	}
	var oldestFirst []string
	for i := maxFiles - 1; i > 0; i-- {
		oldestFirst = append(oldestFirst, fmt.Sprintf("%s.%d", path, i))
	}
	got := read(t, append(oldestFirst, path)...)
	for i, r := range got {
		if want := int32(1000 - len(got) + i); r.Port != want {
			t.Fatalf("line %d is %d, want %d", i, r.Port, want)
		}
	}
	for _, e := range entries {
		if st, err := e.Info(); err != nil || st.Mode().Perm() != 0o600 || st.Size() > f.most {
			t.Errorf("%s: mode %v, %d bytes, %v", e.Name(), st.Mode(), st.Size(), err)
		}
	}
}

// TestRotationFails keeps the old files while none can be moved.
func TestRotationFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	f, err := openFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { f.close() }()
	f.most = 10
	if err := f.write([]byte("{\"port\":1}\n")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".1", []byte("former\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	if err := os.Mkdir(path+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 * maxFiles {
		if err := f.write([]byte("{\"port\":2}\n")); err == nil {
			t.Fatal("it was rotated without a new file")
		}
	}
	if data, err := os.ReadFile(path + ".1"); err != nil || string(data) != "former\n" {
		t.Errorf("an old file is %q, %v", data, err)
	}
	if err := os.Remove(path + ".new"); err != nil {
		t.Fatal(err)
	}
	if err := f.write([]byte("{\"port\":3}\n")); err != nil {
		t.Error(err)
	}
	if got := read(t, path); len(got) != 1 || got[0].Port != 3 {
		t.Errorf("after it %+v", got)
	}
}

// TestSet refuses what is no file, and then keeps the one that it has; a file that was
// moved away is begun anew.
func TestSet(t *testing.T) {
	l, path, _ := open(t)
	dir := t.TempDir()
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.Symlink(path, link), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{dir, link, fifo, "/dev/null", "/proc/none/audit.log"} {
		if err := l.Set(t.Context(), bad); err == nil {
			t.Errorf("%s became the log", bad)
		}
	}
	if st, err := os.Stat("/dev/null"); err != nil || st.Mode().Perm() == 0o600 {
		t.Errorf("/dev/null has mode %v, %v", st.Mode(), err)
	}

	line := func() { l.Begin(Record{Call: Attach}, nil)(0, nil) }
	line()
	for len(l.lines) > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := errors.Join(os.Rename(path, path+".moved"), l.Set(t.Context(), path)); err != nil {
		t.Fatal(err)
	}
	line()
	for len(l.lines) > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := l.Set(t.Context(), ""); err != nil || l.On() {
		t.Errorf("turned off: %v, on %v", err, l.On())
	}
	line()
	l.Close()
	if a, b := read(t, path+".moved"), read(t, path); len(a) != 3 || a[0].Call != Start || len(b) != 2 {
		t.Errorf("%d and %d lines, want the two of a call each, and that of the start", len(a), len(b))
	}
	if (*Log)(nil).On() {
		t.Error("no log is on")
	}
}

// TestPeers knows who is connected.
func TestPeers(t *testing.T) {
	inner, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	l := Peers(inner)
	defer l.Close()
	client, err := net.Dial("unix", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	who := CallerOf(peer.NewContext(t.Context(), &peer.Peer{Addr: c.RemoteAddr()}))
	if want := (Caller{UID: os.Getuid(), GID: os.Getgid(), PID: os.Getpid(), Program: self}); who == nil || *who != want {
		t.Errorf("the caller is %+v, want %+v", who, want)
	}
	if CallerOf(context.Background()) != nil {
		t.Error("nobody is somebody")
	}
}

// TestKilled has a line of a call during which the process ended, and says at the next
// start that there was a gap.
func TestKilled(t *testing.T) {
	l, path, _ := open(t)
	l.Begin(Record{Call: ExecSync, Pod: "p"}, []string{"kill", "-9", "1"})
	for len(l.lines) > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := l.Set(t.Context(), path); err != nil { // waits for the line that is being written
		t.Fatal(err)
	}
	next := New(t.Context(), func(int) {})
	if err := next.Set(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	next.Begin(Record{Call: ExecSync, Pod: "p"}, []string{"true"})(0, nil)
	next.Close()
	l.Close()

	var story []string
	sessions := map[string]bool{}
	for _, r := range read(t, path) {
		story = append(story, r.Call+" "+r.Result)
		sessions[r.Session] = true
	}
	if want := []string{"start ok", "execsync begin", "start ok", "execsync begin", "execsync ok"}; !slices.Equal(story, want) {
		t.Errorf("the lines are %q, want %q", story, want)
	}
	if len(sessions) != 3 { // with that of no session
		t.Errorf("sessions of two daemons are mistaken for each other: %v", sessions)
	}
}
