package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"

	"crisp/cri/spec"
)

// begunPod is a pod whose creation was interrupted at its first step.
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

// storingManager has a directory for records, and is in the boot of [testRecord].
func storingManager(t *testing.T) *Manager {
	m := bareManager()
	m.bootID = "boot"
	m.store = store{dir: t.TempDir(), bootID: m.bootID}
	return m
}

// lockPod starts an operation on a pod; the returned function ends it.
func lockPod(t *testing.T, p *pod) func() {
	t.Helper()
	release, err := p.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return release
}

// spoil makes the undo of a partly created pod fail until the returned function
// is called.
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

// TestUndoOfTwoPodsWithOneName: the undo of one does not block that of the
// other, and the call for the pod waits for it.
func TestUndoOfTwoPodsWithOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := storingManager(t)
		quick, slow := begunPod(t, m, "p1"), begunPod(t, m, "p2")
		release := lockPod(t, slow)
		if err := reconcileFor(t, slow, time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a pod whose undo continues: %v, want %v", err, context.DeadlineExceeded)
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

// TestFailedUndoIsLogged: once, whether recovery waited for it or not, and then
// the pod is listed.
func TestFailedUndoIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := storingManager(t)
		p := begunPod(t, m, "p1")
		heal := spoil(t, p)
		const message = "undo a pod's creation"
		waited := captureLog(func() {
			if err := reconcileFor(t, p, time.Second); err != nil {
				t.Errorf("the caller would log it again: %v", err)
			}
		})

		if n := strings.Count(waited, message); n != 1 || !strings.Contains(waited, spec.HostsFile) {
			t.Errorf("logged %d times in %q", n, waited)
		}
		if got := m.Sandboxes(); len(got) != 1 || got[0].Reason == "" {
			t.Errorf("listed %+v, want the pod and why it is left", got)
		}

		release := lockPod(t, p)
		if err := reconcileFor(t, p, time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("undo that continues: %v, want %v", err, context.DeadlineExceeded)
		}

		later := captureLog(func() {
			release()
			m.wg.Wait()
		})

		if n := strings.Count(later, message); n != 1 {
			t.Errorf("later logged %d times in %q", n, later)
		}
		heal()

		if err := reconcileFor(t, p, time.Second); err != nil || len(m.Sandboxes()) != 0 {
			t.Errorf("undo at last: %v, listed %v", err, m.Sandboxes())
		}
	})
}

// TestListedWhileUndone: a pod that was never returned to a caller is hidden,
// and one that was listed before stays so.
func TestListedWhileUndone(t *testing.T) {
	for reason, want := range map[string]int{"": 0, "it could not be undone": 1} {
		synctest.Test(t, func(t *testing.T) {
			m := storingManager(t)
			p := begunPod(t, m, "p1")
			if reason != "" {
				p.noteLeft(errors.New(reason))
			}

			release := lockPod(t, p)
			if err := reconcileFor(t, p, time.Second); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("reason %q: %v, want %v", reason, err, context.DeadlineExceeded)
			}

			if got := m.Sandboxes(); len(got) != want {
				t.Errorf("reason %q: %d pods are listed, want %d", reason, len(got), want)
			}
			release()
			m.wg.Wait()
		})
	}
}

// captureLog returns what is logged while do runs.
func captureLog(do func()) string {
	var b strings.Builder
	klog.SetLogger(funcr.New(func(_, line string) { fmt.Fprintln(&b, line) }, funcr.Options{}))
	defer klog.ClearLogger()
	do()
	return b.String()
}
