package pause

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestImage(t *testing.T) {
	f, err := elf.NewFile(bytes.NewReader(Image()))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Progs) != 1 || f.Progs[0].Flags != elf.PF_R|elf.PF_X || f.Progs[0].Filesz != uint64(len(Image())) {
		t.Errorf("segments %+v", f.Progs)
	}
	if f.Entry != base+headerSize+phdrSize || len(Image()) > 256 {
		t.Errorf("entry %#x, %d bytes", f.Entry, len(Image()))
	}
}

func TestOpenIsSealed(t *testing.T) {
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0}, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("write: error %v", err)
	}
	if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate: error %v", err)
	}
}

// TestPauses runs the program: it keeps running, ignores SIGCHLD, and uses
// hardly any memory.
func TestPauses(t *testing.T) {
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	p, err := os.StartProcess(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), []string{"pause"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}

	path := fmt.Sprintf("/proc/%d/status", p.Pid)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		status, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}

		if ignored(t, string(status))&(1<<(unix.SIGCHLD-1)) != 0 && bytes.Contains(status, []byte("State:\tS")) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("status\n%s", status)
		}
	}

	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if state, err := p.Wait(); err != nil || state.String() != "signal: killed" {
		t.Errorf("exited with %v, error %v", state, err)
	}
}

// ignored returns the signals that a process ignores, as a mask. Some may be
// inherited from the test's parent.
func ignored(t *testing.T, status string) (mask uint64) {
	t.Helper()
	_, after, _ := strings.Cut(status, "\nSigIgn:")
	if _, err := fmt.Sscanf(after, "%x", &mask); err != nil {
		t.Fatalf("find the ignored signals: %v in\n%s", err, status)
	}
	return mask
}
