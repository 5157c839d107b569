package criu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
)

// program writes a stand-in for CRIU.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFind(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		says   string // "" if it can be used
	}{
		"new":          {"echo Version: 4.2.1", ""},
		"minimum":      {"echo Version: 4.2", ""},
		"much newer":   {"echo Version: 10.0; echo GitID: v10.0-3", ""},
		"old":          {"echo Version: 3.17.1", "3.17.1"},
		"nearly":       {"echo Version: 4.1.9", "4.1.9"},
		"another":      {"echo hello", "did not say any"},
		"malformed":    {"echo Version: four", "malformed"},
		"fails":        {"exit 3", "exit status 3"},
		"sees nothing": {`test "$(env | grep -vc '^PATH\|^PWD\|^_\|^SHLVL\|^OLDPWD')" = 0 && echo Version: 4.2.1`, ""},
	} {
		t.Setenv("SECRET", "of the daemon")
		p, err := Find(t.Context(), program(t, c.script))
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.says == "" && p.Version.Compare(Minimum()) < 0:
			t.Errorf("%s: version %v", name, p.Version)
		case c.says != "" && (!errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "4.2.0")):
			t.Errorf("%s: error %v", name, err)
		}
	}

	if _, err := Find(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrMissing) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such program: %v", err)
	}
}

// TestFinder asks a program for its version again when it is another one.
func TestFinder(t *testing.T) {
	asked := filepath.Join(t.TempDir(), "asked")
	saying := func(version string) string { return "echo >>" + asked + "; echo Version: " + version }
	path := program(t, saying("4.2.1"))
	f := NewFinder(path)
	find := func(want string, times int64) {
		t.Helper()
		p, err := f.Find(t.Context())
		if want == "" && !errors.Is(err, ErrMissing) || want != "" && (err != nil || p.Path != path || p.Version.String() != want) {
			t.Errorf("found %v, %v, want %q", p, err, want)
		}
		if info, err := os.Stat(asked); err != nil || info.Size() != times {
			t.Errorf("asked: %v, %v, want %d times", info, err, times)
		}
	}

	find("4.2.1", 1)
	find("4.2.1", 1)
	if err := os.Rename(program(t, saying("4.3.0")), path); err != nil {
		t.Fatal(err)
	}
	find("4.3.0", 2)
	if err := os.Rename(program(t, saying("3.17.0")), path); err != nil {
		t.Fatal(err)
	}
	find("", 3)
	find("", 4) // it may be mended without being changed
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	find("", 4)
}

// TestUnresponsive asks programs that are no CRIU.
func TestUnresponsive(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   error
	}{
		"says nothing":     {"exit 0", nil},
		"hangs":            {"sleep 100", ErrTimeout},
		"ignores its end":  {"trap '' TERM; sleep 100 & wait; sleep 100", ErrTimeout},
		"answers rubbish":  {"printf rubbish >&3", nil},
		"too long to read": {"head -c 1000000 /dev/zero >&3", nil},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		began := time.Now()
		err := Program{Path: program(t, c.script)}.Dump(ctx, Dump{Pid: 1, Images: t.TempDir(), Freezer: "/none"})
		cancel()

		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

func TestReason(t *testing.T) {
	log := filepath.Join(t.TempDir(), LogFile)
	text := "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n" +
		"(00.2) Warn  (criu/x.c:1): not this\n" +
		"(00.3) Error (criu/sk-unix.c:883): unix: External socket is used: \x1b[31m\n" +
		"(00.4) Error (criu/cr-dump.c:1975): Dumping FAILED.\n" +
		"(00.5) Error (criu/cr-restore.c:2372): Restoring FAILED.\n" +
		"(00.6) Error (criu/cgroup.c:1998): cg: cgroupd: recv req error: No such file or directory\n"
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := reasonIn(log), `unix: External socket is used: \u001b[31m`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}

	long := strings.Repeat("(00.1) Error (a:1): "+strings.Repeat("x", 5000)+"\n", 10)
	if err := os.WriteFile(log, []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := reasonIn(log); len(got) > maxReason+100 {
		t.Errorf("a reason of %d bytes", len(got))
	}
	late := strings.Repeat("(00.1) more\n", maxLog/10) + "(00.2) Error (a:1): at the end\n"
	if err := os.WriteFile(log, []byte(late), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := reasonIn(log); got != "at the end" {
		t.Errorf("after a long log: %q", got)
	}
	if got := reasonIn(log + "-none"); got != "" {
		t.Errorf("without a log: %q", got)
	}
}

func TestOwnMounts(t *testing.T) {
	host := map[[2]int]bool{{0, 30}: true}
	for _, c := range []struct {
		fsType, root, at string
		minor            int
		own              bool
	}{
		{"proc", "/", "/proc", 50, true},
		{"proc", "/sys", "/proc/sys", 50, true},
		{"tmpfs", "/", "/dev", 51, true},
		{"tmpfs", "/", "/cache", 52, true},
		{"tmpfs", "/", "/dev/shm", 53, false},
		{"tmpfs", "/", "/memory-volume", 30, false},
		{"tmpfs", "/run", "/var/run", 54, false},
		{"ext4", "/data", "/data", 1, false},
		{"overlay", "/", "/image-volume", 55, false},
		{"devtmpfs", "/null", "/proc/keys", 6, false},
	} {
		m := &mountinfo.Info{FSType: c.fsType, Root: c.root, Mountpoint: c.at, Minor: c.minor}
		if got := isOwn(m, host); got != c.own {
			t.Errorf("%s of %s at %s: own %t", c.root, c.fsType, c.at, got)
		}
	}
}

// TestExternalsOfThisProcess lists those of a process in the node's namespaces.
func TestExternalsOfThisProcess(t *testing.T) {
	list, err := Externals([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if strings.HasPrefix(e, "net[") {
			t.Errorf("the node's own network is %s", e)
		}
	}
	if _, err := Externals([]int{1 << 30}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without such a process: %v", err)
	}
}
