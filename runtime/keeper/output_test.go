package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/crilog"
	"crisp/runtime/keeper/spool"
	"crisp/runtime/spawn"
	"crisp/runtime/wire"
)

// TestOutputOfKilledKeepers continues after several keepers were killed in turn
// between a read and the write to the log.
func TestOutputOfKilledKeepers(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}

	if _, err := unix.FcntlInt(uintptr(pipe[1]), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		t.Fatal(err)
	}
	writer := os.NewFile(uintptr(pipe[1]), "pipe")
	held, err := spool.Create(crilog.MaxLine(0))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()

	next := 0
	count := func() {
		var b strings.Builder
		for b.Len() < spool.ReadSize {
			fmt.Fprintln(&b, next)
			next++
		}
		if _, err := writer.WriteString(b.String()); err != nil {
			t.Fatal(err)
		}
	}

	reads := 0
	for err == nil {
		count()
		reads++
		err = readAndDie(t, int(held.Fd()), pipe[0])
	}
	if !errors.Is(err, spool.ErrInvalid) || reads < 3 {
		t.Fatalf("read %d: %v, want a spool without room", reads, err)
	}

	path := filepath.Join(t.TempDir(), "log")
	log, err := unix.Open(path, unix.O_CREAT|unix.O_APPEND|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}

	stdout := wire.Streams()[0]
	files, err := wire.Files{{Role: stdout.Spool, FD: int(held.Fd())}}.Copy()
	if err != nil {
		t.Fatal(err)
	}
	files.Add(stdout.Pipe, pipe[0])
	files.Add(wire.Log, log)

	k := newKeeper(t.TempDir(), spawn.Options{})
	e := &entry{id: "web", kind: wire.Container}
	if err := k.equip(e, &files, 0, make(chan struct{})); err != nil {
		t.Fatal(err)
	}

	k.enter(e)
	writer.Close()
	select {
	case <-e.outputs[0].done:
	case <-time.After(30 * time.Second):
		t.Fatal("the output does not end")
	}
	e.log.Close()

	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	for i, line := range lines {
		if _, content, _ := strings.Cut(line, " F "); content != fmt.Sprint(i) {
			t.Fatalf("line %d of %d: %q", i, len(lines), line)
		}
	}

	if len(lines) != next {
		t.Errorf("%d lines logged, want %d", len(lines), next)
	}
}

// readAndDie is a keeper that is killed between a read and the write to the log.
func readAndDie(t *testing.T, held, pipe int) error {
	t.Helper()
	fds, err := wire.Files{{Role: wire.Streams()[0].Spool, FD: held}}.Copy()
	if err != nil {
		t.Fatal(err)
	}
	defer fds.Close()
	s, err := spool.Open(fds[0].FD)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Fill(pipe)
	return err
}
