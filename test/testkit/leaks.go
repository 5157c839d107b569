package testkit

import (
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// settleTime is how long resources of a test may take to disappear by
// themselves.
const settleTime = 20 * time.Second

// Leaks records existing mounts, cgroups, network links, child processes and
// open descriptors, and fails the test at its end if there are more. Call it
// first: cleanups registered later run before its check. It is not for parallel
// tests, whose descriptors cannot be distinguished.
//
// Unless [Strict], things outside this process count only when they carry
// the test's [Name] (as everything in its temporary directories does) or one of
// the given marks: other tests may run at the same time.
func Leaks(t testing.TB, marks ...string) {
	t.Helper()
	t.Setenv("CRISP_TEST_LEAKS", t.Name()) // Setenv panics in parallel tests
	scope := inventory.Scope{All: Strict(), Namespaced: lab.Isolated(), Marks: append(marks, Name(t))}
	before := inventory.Take()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		for _, what := range before.Settle(pace.Scale(settleTime), scope) {
			t.Errorf("left behind: %s", what)
		}
	})
}

// Name returns a name for what the test creates outside its temporary
// directories: cgroups, pinned namespaces and the like. No other test or
// process uses it.
func Name(t testing.TB) string {
	t.Helper()
	return filepath.Base(filepath.Dir(t.TempDir()))
}
