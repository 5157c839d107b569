package criu

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timerfd"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"crisp/test/testkit"
)

// TestWindTimers checks that a timer that has run out and not been read goes on, and no
// other is changed.
func TestWindTimers(t *testing.T) {
	for name, test := range map[string]struct {
		ticks, value, interval uint64
		want                   uint64 // of the value, in nanoseconds
	}{
		"ran out":           {3, 0, 100, 1},
		"ran out, and runs": {3, 50, 100, 50},
		"once":              {1, 0, 0, 0},
		"stopped":           {0, 0, 100, 0},
		"runs":              {0, 7, 0, 7},
	} {
		i := newImages(t)
		i.open(&fdinfo.FileEntry{Type: fdinfo.FdTypes_TIMERFD.Enum(), Tfd: &timerfd.TimerfdEntry{
			Clockid: u(unix.CLOCK_MONOTONIC), Ticks: to(test.ticks), Vnsec: to(test.value), Insec: to(test.interval),
		}})

		dir := i.write(t)
		if err := WindTimers(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		all, err := Inspect(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := all.files[50].GetTfd().GetVnsec(); got != test.want || len(all.files) != len(i.files) {
			t.Errorf("%s: the timer runs out in %d, want %d; %d of %d files", name, got, test.want, len(all.files), len(i.files))
		}
	}
	if err := WindTimers(t.Context(), t.TempDir()); err == nil {
		t.Error("no image: no error")
	}
}

// TestEndedProcess has images of a process that has ended, which CRIU writes with any
// number for its thread.
func TestEndedProcess(t *testing.T) {
	i := newImages(t)
	i.tree = append(i.tree, &pstree.PstreeEntry{Pid: u(2), Ppid: u(1), Pgid: u(1), Sid: u(1), Threads: []uint32{1994722320}})
	i.more["core-2.img"] = image{magicCore, entriesOf(&criu_core.CoreEntry{
		Mtype: criu_core.CoreEntry_X86_64.Enum(), Tc: &criu_core.TaskCoreEntry{TaskState: u(stateZombie)},
	}), nil}
	if err := check(t, i.write(t), simpleSpec(), false); err != nil {
		t.Error(err)
	}

	i.more["core-2.img"].entries[0].(*criu_core.CoreEntry).Tc.TaskState = proto.Uint32(1)
	if err := check(t, i.write(t), simpleSpec(), false); !errors.Is(err, ErrImages) {
		t.Errorf("one that runs: error %v", err)
	}
}

// TestSaveable looks at processes for what CRIU cannot save.
func TestSaveable(t *testing.T) {
	if _, err := Saveable([]int{os.Getpid()}); err != nil {
		t.Errorf("this process: %v", err)
	}
	const userModeOnly = 1
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, userModeOnly, 0, 0)
	if errno != 0 {
		testkit.Skip(t, "userfaultfd", errno.Error())
	}
	_, err := Saveable([]int{os.Getpid()})
	unix.Close(int(fd))
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "userfaultfd") {
		t.Errorf("with a userfaultfd: %v", err)
	}

	ended := exec.CommandContext(t.Context(), "true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := Saveable([]int{ended.Process.Pid}); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
}
