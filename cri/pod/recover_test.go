package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"crisp/cri/spec"
)

// begunPod is one whose creation was cut short at its first step.
func begunPod(t *testing.T, m *Manager, id string) *pod {
	t.Helper()
	r := testRecord(t, id)
	r.Phase, r.Containers = sandboxSteps[0].name, nil
	if err := os.Mkdir(m.store.podDir(id), 0o700); err != nil {
		t.Fatal(err)
	}
	p := newPod(m, r, nil)
	if err := p.note(r.Phase); err != nil {
		t.Fatal(err)
	}
	m.register(p)
	return p
}

// storingManager has a folder for records, and is in the boot of [testRecord].
func storingManager(t *testing.T) *Manager {
	m := bareManager()
	m.bootID = "boot"
	m.store = store{dir: t.TempDir(), bootID: m.bootID}
	return m
}

// lockPod begins an operation on a pod; it ends with the returned function.
func lockPod(t *testing.T, p *pod) func() {
	t.Helper()
	release, err := p.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return release
}

// spoil makes the undoing of a begun pod fail until the returned function is called.
func spoil(t *testing.T, p *pod) func() {
	t.Helper()
	path := p.sharedFile(spec.HostsFile)
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

func reconcileFor(t *testing.T, p *pod, d time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return p.reconcile(ctx, true, nil)
}

// TestUndoOfTwoPodsWithOneName: the undoing of one does not keep the other from
// being undone, and the call for the pod waits for it.
func TestUndoOfTwoPodsWithOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := storingManager(t)
		quick, slow := begunPod(t, m, "p1"), begunPod(t, m, "p2")
		release := lockPod(t, slow)
		if err := reconcileFor(t, slow, time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a pod whose undoing goes on: %v, want %v", err, context.DeadlineExceeded)
		}
		if err := reconcileFor(t, quick, time.Second); err != nil || !quick.isGone() {
			t.Errorf("the other pod of that name: %v, gone: %v", err, quick.isGone())
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if id, err := m.existing(t.Context(), slow.record().Config.Msg); id != "" || err != nil {
				t.Errorf("a call for the pod got %q, %v, want room for a new one", id, err)
			}
		}()
		synctest.Wait()
		select {
		case <-ended:
			t.Error("a call for the pod did not wait until it was undone")
		default:
		}
		release()
		<-ended
		m.wg.Wait()
		if len(m.pods)+len(m.names)+len(m.ops) != 0 {
			t.Errorf("left are pods %v, names %v and operations %v", m.pods, m.names, m.ops)
		}
	})
}

func TestUndoOfAPodThatIsGone(t *testing.T) {
	m := storingManager(t)
	p := begunPod(t, m, "p1")
	if err := p.undo(t.Context()); err != nil || !p.isGone() {
		t.Fatalf("undo: %v, gone: %v", err, p.isGone())
	}
	spoil(t, p)
	if err := p.undo(t.Context()); err != nil {
		t.Errorf("undo again: %v", err)
	}
}
