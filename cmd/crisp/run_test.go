package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// bundle makes a bundle that runs a script with the host's programs, and the
// command that runs it.
func bundle(t *testing.T, script string, change func(*specs.Spec)) *exec.Cmd {
	testkit.Root(t)
	testkit.Leaks(t, "crisp/run-", "crisp-run-")
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}
	crisp, err := cache.Crisp()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", t.TempDir())
	s := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Cwd: "/"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.UTSNamespace}}},
	}
	for _, host := range []string{"/bin", "/usr", "/lib", "/lib64"} {
		if _, err := os.Stat(host); err == nil {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: host, Type: "bind", Source: host, Options: []string{"rbind", "ro"}})
		}
	}
	if change != nil {
		change(s)
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "rootfs"), 0o755), os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(crisp, "run", dir)
	cmd.Stderr = os.Stderr
	return cmd
}

func wantExit(t *testing.T, err error, code int) {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("ended with %v, want exit code %d", err, code)
	}
}

func TestRunPassesStreamsAndCode(t *testing.T) {
	cmd := bundle(t, "cat; echo $$; : >/dev/null; exit 7", nil)
	cmd.Stdin = strings.NewReader("hello\n")
	out, err := cmd.Output()
	wantExit(t, err, 7)
	if string(out) != "hello\n1\n" {
		t.Errorf("printed %q", out)
	}
}

func TestRunPassesSignals(t *testing.T) {
	cmd := bundle(t, "trap 'exit 9' TERM; echo ready; sleep 100 & wait", nil)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Errorf("printed %q, %v", line, err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	wantExit(t, cmd.Wait(), 9)
}

func TestRunGivesTerminal(t *testing.T) {
	cmd := bundle(t, "test -t 0 && test -t 1 && echo terminal", func(s *specs.Spec) { s.Process.Terminal = true })
	out, err := cmd.Output()
	if err != nil || string(out) != "terminal\r\n" {
		t.Errorf("printed %q, %v", out, err)
	}
}

func TestRunNamesWhatIsWrong(t *testing.T) {
	cmd := bundle(t, "", func(s *specs.Spec) { s.Process.Args = []string{"/nothing"} })
	cmd.Stderr = nil
	_, err := cmd.Output()
	wantExit(t, err, 1)
	var exit *exec.ExitError
	if errors.As(err, &exit) && !strings.Contains(string(exit.Stderr), `exec "/nothing"`) {
		t.Errorf("said %q", exit.Stderr)
	}
}
