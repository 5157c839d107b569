package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestActivity follows an operation through its steps, its failure and rollback.
func TestActivity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Manager{ops: map[string]*operation{}}
		reached, goOn := make(chan struct{}), make(chan struct{})
		pause := func(struct{}, context.Context) error {
			reached <- struct{}{}
			<-goOn
			return nil
		}
		steps := []step[struct{}]{
			{name: "one", do: pause, undo: pause},
			{name: "two", do: func(struct{}, context.Context) error { return errors.New("broken") }, undo: func(struct{}, context.Context) error { return nil }},
		}
		done := make(chan error)
		go func() {
			_, err := m.join(t.Context(), "key", Operation{What: "run pod", Pod: "default/web"}, func(ctx context.Context) (string, error) {
				m.activity.identify(ctx, "1234")
				err := walk(ctx, steps, struct{}{}, func(string, bool) error { return nil })
				return "", fmt.Errorf("run sandbox web: %w", err)
			})
			done <- err
		}()

		for _, undo := range []bool{false, true} {
			<-reached
			ops := m.Operations()
			if len(ops) != 1 || ops[0].Pod != "default/web" || ops[0].SandboxID != "1234" || ops[0].Stage != "one" || ops[0].Undo != undo || ops[0].StageBegan.Before(ops[0].Began) {
				t.Errorf("undo %v: operations %+v", undo, ops)
			}
			goOn <- struct{}{}
		}

		if err := <-done; err == nil || err.Error() != "run sandbox web: two: broken" {
			t.Errorf("the error is %v", err)
		}
		if ops := m.Operations(); len(ops) > 0 {
			t.Errorf("operations %+v are left", ops)
		}
		past := m.History()
		if len(past) != 1 || past[0].What != "run pod failed" || past[0].Stage != "two" || past[0].Error != "run sandbox web: two: broken" {
			t.Errorf("history %+v", past)
		}
	})
}

// TestHistoryIsBounded notes more than is remembered.
func TestHistoryIsBounded(t *testing.T) {
	var a activity
	for i := range 3 * maxEvents {
		a.note(Event{What: fmt.Sprint(i)})
	}
	if len(a.past) != maxEvents || a.past[0].What != fmt.Sprint(2*maxEvents) || a.past[maxEvents-1].What != fmt.Sprint(3*maxEvents-1) {
		t.Errorf("%d events from %s", len(a.past), a.past[0].What)
	}
}

// TestNotePull remembers failed pulls, and those that succeed afterwards.
func TestNotePull(t *testing.T) {
	m, web := &Manager{}, &runtimeapi.PodSandboxMetadata{Namespace: "default", Name: "web"}
	failure := errors.New("HTTP status 404 Not Found")
	for _, pull := range []struct {
		image string
		err   error
	}{{"a:1", nil}, {"b:1", failure}, {"b:1", failure}, {"a:1", nil}, {"b:1", nil}, {"b:1", nil}} {
		m.NotePull(web, pull.image, pull.err)
	}

	want := []Event{
		{What: "pull image failed", Pod: "default/web", Image: "b:1", Error: failure.Error()},
		{What: "pull image failed", Pod: "default/web", Image: "b:1", Error: failure.Error()},
		{What: "image pulled", Pod: "default/web", Image: "b:1"},
	}
	past := m.History()
	for i := range past {
		past[i].Time = time.Time{}
	}
	if !slices.Equal(past, want) {
		t.Errorf("history %+v, want %+v", past, want)
	}
}
