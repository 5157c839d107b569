package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"crisp/test/testkit"
)

func TestRotationLosesNothing(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	const count = 20000
	sh := newShell(t, "web", fmt.Sprintf("seq %d; echo end >&2", count))
	sh.start(t, c)
	paths := []string{sh.log}
	for ended := false; !ended; {
		select {
		case <-c.Events():
			ended = true
		case <-time.After(time.Millisecond):
			path := fmt.Sprintf("%s.%d", sh.log, len(paths))
			out, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.ReopenLog(testContext(t), "web", out); err != nil {
				t.Fatal(err)
			}
			out.Close()
			paths = append(paths, path)
		}
	}

	var all []byte
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}

	n := 0
	for line := range strings.Lines(string(all)) {
		if strings.Contains(line, " stderr ") {
			continue
		}
		n++
		if !strings.HasSuffix(line, fmt.Sprintf(" stdout F %d\n", n)) {
			t.Fatalf("line %d is %q", n, line)
		}
	}

	if n != count {
		t.Errorf("%d lines in %d files, want %d", n, len(paths), count)
	}
	forget(t, c, "web")
}

// TestExitFollowsOutput reads the whole log at the moment of the exit event.
func TestExitFollowsOutput(t *testing.T) {
	testkit.Root(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()
	for i := range 20 {
		id := fmt.Sprintf("c%d", i)
		sh := newShell(t, id, "head -c 300000 /dev/zero | tr '\\0' x; echo; echo last >&2; exit 1")
		sh.start(t, c)
		awaitExit(t, c, id)

		log := string(sh.read(t))
		if n := strings.Count(log, "x"); n != 300000 || !strings.Contains(log, " stderr F last\n") {
			t.Errorf("log has %d bytes of output", n)
		}
		forget(t, c, id)
	}
}

// TestBackgroundWriter has a process keep the pipe after the container's end.
func TestBackgroundWriter(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	defer c.Close()

	release := filepath.Join(t.TempDir(), "release")
	sh := newShell(t, "web", "(while [ ! -e "+release+" ]; do sleep 0.01; done; echo late) & printf early; exit 2")
	sh.start(t, c)
	if x := awaitExit(t, c, "web"); x.Code != 2 {
		t.Errorf("exit %+v", x)
	}

	if log := sh.read(t); !bytes.HasSuffix(log, []byte(" stdout P early\n")) {
		t.Errorf("log %q", log)
	}
	if err := os.WriteFile(release, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	eventually(t, "late output", func() bool { return bytes.HasSuffix(sh.read(t), []byte(" stdout F late\n")) })
	awaitChildless(t, c) // the orphan is the keeper's to reap
	forget(t, c, "web")
}

func TestAttach(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	begin := filepath.Join(t.TempDir(), "begin")
	sh := newShell(t, "web", "while [ ! -e "+begin+" ]; do sleep 0.01; done; head -c 3000000 /dev/zero; echo oops >&2")
	sh.start(t, c)
	attach := func(out, errs bool) (outR, errR *os.File) {
		var outW, errW *os.File
		if out {
			outR, outW = pipe(t)
			t.Cleanup(func() { outR.Close() })
		}

		if errs {
			errR, errW = pipe(t)
			t.Cleanup(func() { errR.Close() })
		}
		if err := c.Attach(testContext(t), "web", outW, errW); err != nil {
			t.Fatal(err)
		}

		closeFiles(outW, errW)
		return outR, errR
	}

	attach(true, true) // a reader that never reads
	gone, _ := attach(true, false)
	gone.Close()
	_, errR := attach(false, true)
	outR, _ := attach(true, false)
	if err := os.WriteFile(begin, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	var got int64
	var wg sync.WaitGroup
	wg.Go(func() { got, _ = io.Copy(io.Discard, outR) })
	oops, err := io.ReadAll(errR)
	if err != nil || string(oops) != "oops\n" {
		t.Errorf("stderr %q, error %v", oops, err)
	}
	wg.Wait()
	awaitExit(t, c, "web")

	if got == 0 || got > 3000000 {
		t.Errorf("attached reader got %d bytes", got)
	}
	if n := bytes.Count(sh.read(t), []byte{0}); n != 3000000 {
		t.Errorf("log has %d bytes of output", n)
	}

	r, w := pipe(t)
	defer r.Close()
	defer w.Close()
	if err := c.Attach(testContext(t), "web", w, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("attach to what has ended: error %v", err)
	}

	if err := c.Attach(testContext(t), "unknown", w, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("attach to an unknown ID: error %v", err)
	}
	if err := c.ReopenLog(testContext(t), "unknown", w); !errors.Is(err, ErrNotFound) {
		t.Errorf("reopen log of an unknown ID: error %v", err)
	}
	forget(t, c, "web")
}
