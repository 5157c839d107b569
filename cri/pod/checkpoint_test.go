package pod

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/checkpoint"
	"crisp/runtime/criu"
)

// TestEmptyRemovesItsFilesAlone has an output directory whose name is a pattern, and
// a file of somebody else's in it.
func TestEmptyRemovesItsFilesAlone(t *testing.T) {
	base := t.TempDir()
	dir, other := filepath.Join(base, "web[12]"), filepath.Join(base, "web1")
	kept := []string{filepath.Join(other, "container-0.tar"), filepath.Join(other, "x"), filepath.Join(dir, "notes")}
	err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(other, 0o700))
	for _, path := range append(kept, filepath.Join(dir, "container-0.tar")) {
		err = errors.Join(err, os.WriteFile(path, nil, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}

	if err := empty(dir, []string{"pod.dump", "container-0.tar", "container-1.tar"}); err != nil {
		t.Error(err)
	}
	for _, path := range kept {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestInterruptWaitingCheckpoints ends checkpoints that wait for another operation on
// the pod: whoever stops it would wait for each of them.
func TestInterruptWaitingCheckpoints(t *testing.T) {
	m := storingManager(t)
	program := filepath.Join(t.TempDir(), "criu")
	m.CRIU = criu.NewFinder(program)
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho Version: 4.2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := begunPod(t, m, "pod")
	release := lockPod(t, p)
	defer release()

	const several = 2
	ended := make(chan error, several)
	for range several {
		go func() { _, err := p.checkpoint(t.Context(), nil, []string{"none"}, nil); ended <- err }()
	}
	waiting := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.checkpoints)
	}
	for end := time.Now().Add(10 * time.Second); waiting() < several; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d checkpoints wait", waiting())
		}
	}

	p.interruptCheckpoints("another")
	if n := waiting(); n != several {
		t.Errorf("%d checkpoints wait after the stop of another container", n)
	}
	p.interruptCheckpoints("none")
	for range several {
		select {
		case err := <-ended:
			if !errors.Is(err, errInterrupted) || !errors.Is(err, ErrState) {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a checkpoint still waits")
		}
	}
	if n := waiting(); n > 0 {
		t.Errorf("%d checkpoints are known", n)
	}
}

// TestCheckpointOfStopping asks for checkpoints of a container that has been told to end,
// and needs its time for that.
func TestCheckpointOfStopping(t *testing.T) {
	m := storingManager(t)
	program := filepath.Join(t.TempDir(), "criu")
	m.CRIU = criu.NewFinder(program)
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho Version: 4.2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := begunPod(t, m, "pod")
	checkpoint := func(id string) error { _, err := p.checkpoint(t.Context(), nil, []string{id}, nil); return err }

	first, second := p.holdOffCheckpoints("none"), p.holdOffCheckpoints("none")
	if err := checkpoint("none"); !errors.Is(err, errInterrupted) {
		t.Errorf("while it is stopped: %v", err)
	}
	if err := checkpoint("another"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of another: %v", err)
	}
	first()
	if err := checkpoint("none"); !errors.Is(err, errInterrupted) {
		t.Errorf("while a second stop goes on: %v", err)
	}
	second()
	if err := checkpoint("none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after the stops: %v", err)
	}
}

// TestOutside has owners that a container has, and those that it cannot have.
func TestOutside(t *testing.T) {
	for name, test := range map[string]struct {
		maps     []specs.LinuxIDMapping
		id       int
		want     uint32
		hasOwner bool
	}{
		"no user namespace": {nil, 7, 7, true},
		"root":              {[]specs.LinuxIDMapping{{HostID: 300000, Size: 65536}}, 0, 300000, true},
		"last":              {[]specs.LinuxIDMapping{{HostID: 300000, Size: 65536}}, 65535, 365535, true},
		"beyond":            {[]specs.LinuxIDMapping{{HostID: 300000, Size: 65536}}, 65536, 0, false},
		"of the node":       {[]specs.LinuxIDMapping{{HostID: 300000, Size: 65536}}, 300000, 0, false},
		"negative":          {[]specs.LinuxIDMapping{{HostID: 300000, Size: 65536}}, -1, 0, false},
		"second range":      {[]specs.LinuxIDMapping{{HostID: 300000, Size: 10}, {ContainerID: 20, HostID: 400000, Size: 10}}, 21, 400001, true},
	} {

		s := &specs.Spec{Linux: &specs.Linux{UIDMappings: test.maps, GIDMappings: test.maps}}
		u, g, err := outside(s)(test.id, test.id)
		if (err == nil) != test.hasOwner || u != test.want || g != test.want {
			t.Errorf("%s: %d:%d, %v", name, u, g, err)
		}
		if err != nil && !errors.Is(err, checkpoint.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
