package seccomp

import "testing"

// testMachine runs compiled filters in a test.
type testMachine struct{ machine }

func newTestMachine(t testing.TB, f Filter) testMachine {
	t.Helper()
	if len(f.Prog)%insnSize != 0 {
		t.Fatalf("program of %d bytes", len(f.Prog))
	}
	m, err := newMachine(f.Prog)
	if err != nil {
		t.Fatal(err)
	}
	return testMachine{m}
}

// run returns the filter's action.
func (m testMachine) run(t testing.TB, e event) action {
	t.Helper()
	a, err := m.machine.run(e)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
