package main

import (
	"os"
	"os/exec"
	"testing"
)

func TestStuckPlugin(t *testing.T) {
	s := &stuckPlugin{dir: t.TempDir(), real: "/bin/cat"}
	run := func(command string) *exec.Cmd {
		t.Helper()
		cmd := exec.Command(s.path(stuckName))
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+command)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}

	if err := s.hold(); err != nil {
		t.Fatal(err)
	}
	if err := run("DEL").Wait(); err != nil {
		t.Errorf("another command than ADD: %v", err)
	}

	cmd, started := run("ADD"), make(chan error, 1)
	if err := s.waitUntilHeld(t.Context(), started); err != nil {
		t.Fatal(err)
	}

	if _, err := os.Stat(s.path(stuckName)); err == nil {
		t.Error("other pods are not let pass")
	}
	if err := s.release(); err != nil {
		t.Fatal(err)
	}

	if err := cmd.Wait(); err != nil {
		t.Errorf("the plugin itself did not run in the end: %v", err)
	}
	if err := s.clear(); err != nil {
		t.Fatal(err)
	}

	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if err := s.hold(); err != nil {
		t.Fatal(err)
	}

	started <- nil
	if err := s.waitUntilHeld(t.Context(), started); err == nil {
		t.Error("a pod that started counts as stuck")
	}
}
