package procstat

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// line is a stat line whose command looks like fields.
func line(command, state, flags, start, exit string) []byte {
	fields := make([]string, 52)
	for i := range fields {
		fields[i] = "7"
	}
	fields[1] = "(" + command + ")"
	fields[fieldState-1], fields[fieldFlags-1], fields[fieldStartTicks-1], fields[fieldExit-1] = state, flags, start, exit
	return []byte(strings.Join(fields, " ") + "\n")
}

func TestParse(t *testing.T) {
	want := Stat{State: 'S', Parent: 7, Group: 7, Flags: 4194560, StartTicks: 18446744073709551615, Exit: 256}
	for _, command := range []string{"sh", "", "a b", ") R 1 (", ")) Z 1 2 3 4 5 6 7 8 9", "x\ny\xff"} {
		got, err := parse(line(command, "S", "4194560", "18446744073709551615", "256"))
		if err != nil || got != want {
			t.Errorf("command %q: %+v, %v, want %+v", command, got, err, want)
		}
	}

	for _, c := range []struct {
		data []byte
		want string
	}{
		{nil, "it has no command"},
		{[]byte("1 (sh) S 2 3"), "only 5 fields"},
		{line("sh", "S", "x", "1", "0"), "flags: "},
		{line("sh", "S", "0", "-1", "0"), "start time: "},
		{line("sh", "S", "0", "1", "18446744073709551616"), "exit status: "},
	} {
		if _, err := parse(c.data); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("parse(%q): error %v, want %q", c.data, err, c.want)
		}
	}
}

// A process of this test's own runs, becomes a zombie and is gone.
func TestRead(t *testing.T) {
	cmd := exec.Command("sh", "-c", "read x; exit 7")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}

	pid := cmd.Process.Pid
	alive, err := Read(pid)
	self, selfErr := Read(os.Getpid())
	if err != nil || selfErr != nil || alive.StartTicks < self.StartTicks || alive.State == 'Z' {
		t.Errorf("alive: %+v, %v, this test's own: %+v, %v", alive, err, self, selfErr)
	}

	in.Close()
	var zombie Stat
	for end := time.Now().Add(30 * time.Second); zombie.State != 'Z' && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if zombie, err = Read(pid); err != nil {
			t.Fatal(err)
		}
	}
	if want := unix.WaitStatus(7 << 8); zombie.State != 'Z' || zombie.Exit != want || zombie.StartTicks != alive.StartTicks {
		t.Errorf("ended: %+v, want a zombie with status %#x, started at %d", zombie, want, alive.StartTicks)
	}

	_ = cmd.Wait() // exit status 7
	if _, err := Read(pid); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		t.Errorf("reaped: error %v, want %v", err, fs.ErrNotExist)
	}
}
