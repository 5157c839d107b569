package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// trace is a target that records its steps.
type trace struct {
	events []string
	phases []string
}

var errStep = errors.New("step went wrong")

// stepTable returns n steps, of which do number failDo and undo number failUndo
// fail.
func stepTable(n, failDo, failUndo int) []step[*trace] {
	var steps []step[*trace]
	for i := range n {
		note := func(what string, fail bool) func(*trace, context.Context) error {
			return func(t *trace, _ context.Context) error {
				t.events = append(t.events, fmt.Sprintf("%s%d", what, i))
				if fail {
					return errStep
				}
				return nil
			}
		}
		steps = append(steps, step[*trace]{
			name: fmt.Sprintf("step %d", i),
			do:   note("do", i == failDo), undo: note("undo", i == failUndo),
		})
	}

	return steps
}

func (t *trace) note(phase string, _ bool) error {
	t.phases = append(t.phases, phase)
	return nil
}

func TestWalkRecordsEachPhaseBeforeItsStep(t *testing.T) {
	var tr trace
	note := func(phase string, _ bool) error {
		tr.events = append(tr.events, phase)
		return nil
	}
	if err := walk(t.Context(), stepTable(2, -1, -1), &tr, note); err != nil {
		t.Fatal(err)
	}
	want := []string{"step 0", "do0", "step 1", "do1", phaseReady}
	if !slices.Equal(tr.events, want) {
		t.Errorf("events %q, want %q", tr.events, want)
	}
}

func TestWalkUndoesFromTheFailedStep(t *testing.T) {
	for fail := range 3 {
		var tr trace
		err := walk(t.Context(), stepTable(3, fail, -1), &tr, tr.note)
		if !errors.Is(err, errStep) || leftOver(err) {
			t.Fatalf("step %d fails: error %v", fail, err)
		}

		var want []string
		for i := 0; i <= fail; i++ {
			want = append(want, fmt.Sprintf("do%d", i))
		}

		for i := fail; i >= 0; i-- {
			want = append(want, fmt.Sprintf("undo%d", i))
		}
		if !slices.Equal(tr.events, want) {
			t.Errorf("step %d fails: events %q, want %q", fail, tr.events, want)
		}
		if slices.Contains(tr.phases, phaseReady) {
			t.Errorf("step %d fails: phases %q say ready", fail, tr.phases)
		}
	}
}

func TestWalkUndoesAfterTheCallerGaveUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	undone := false
	steps := []step[*trace]{{
		name: "only",
		do:   func(*trace, context.Context) error { cancel(); return ctx.Err() },
		undo: func(_ *trace, ctx context.Context) error { undone = true; return ctx.Err() },
	}}

	var tr trace
	if err := walk(ctx, steps, &tr, tr.note); !errors.Is(err, context.Canceled) || leftOver(err) {
		t.Errorf("error %v", err)
	}
	if !undone {
		t.Error("not undone")
	}
}

func TestFailedUndoKeepsWhatItRestsOn(t *testing.T) {
	var tr trace
	err := walk(t.Context(), stepTable(3, 2, 1), &tr, tr.note)
	if !leftOver(err) {
		t.Errorf("error %v does not report that something is left", err)
	}
	if want := []string{"do0", "do1", "do2", "undo2", "undo1"}; !slices.Equal(tr.events, want) {
		t.Errorf("events %q, want %q", tr.events, want)
	}
}

func TestUnwindFromPhase(t *testing.T) {
	for phase, want := range map[string][]string{
		"step 0":     {"undo0"},
		"step 1":     {"undo1", "undo0"},
		phaseReady:   {"undo2", "undo1", "undo0"},
		phaseStopped: {"undo2", "undo1", "undo0"},
	} {
		var tr trace
		if err := unwind(t.Context(), stepTable(3, -1, -1), phase, &tr); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(tr.events, want) {
			t.Errorf("unwind from %q: %q, want %q", phase, tr.events, want)
		}
	}
}

func TestUnrecordedPhaseIsUndone(t *testing.T) {
	var tr trace
	errDisk := errors.New("disk is full")
	err := walk(t.Context(), stepTable(2, -1, -1), &tr, func(phase string, _ bool) error {
		if phase == "step 1" {
			return errDisk
		}
		return nil
	})

	if !errors.Is(err, errDisk) {
		t.Errorf("error %v", err)
	}
	if want := []string{"do0", "undo1", "undo0"}; !slices.Equal(tr.events, want) {
		t.Errorf("events %q, want %q", tr.events, want)
	}
}
