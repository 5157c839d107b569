package testkit

import (
	"context"
	"errors"
	"testing"

	"crisp/test/testkit/lab"
)

// Main is a TestMain for tests that use [Daemon] or [Leaks]: they run in
// namespaces of their own, and may run next to others. After the tests it runs
// the given functions.
func Main(m *testing.M, after ...func()) int {
	return lab.Isolate(func() int {
		status := m.Run()
		for _, f := range after {
			f()
		}
		return status
	})
}

// Daemon starts a daemon for the test, with a registry that has the test
// images. At the end of the test its pods are removed and it is stopped; any
// leak fails the test.
func Daemon(t testing.TB, opt lab.Options) *lab.Lab {
	t.Helper()
	Root(t)
	if opt.Dir == "" {
		opt.Dir = t.TempDir()
	}

	l, err := lab.New(t.Context(), opt)
	if errors.Is(err, lab.ErrNotMade) {
		Skip(t, "the build", err.Error())
	}
	if err != nil {
		t.Fatalf("start a daemon: %v", err)
	}
	t.Cleanup(func() {
		log := l.Log()
		if err := l.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("end the daemon: %v", err)
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", log)
		}
	})

	return l
}
