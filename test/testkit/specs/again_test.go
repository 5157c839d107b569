package specs

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// spec is one with the name of a container and a text. Each is run by a process
// of its own, but for those in containers that are ordered.
func spec(container, text, state string) Spec {
	s := Spec{ContainerHierarchyTexts: []string{"[sig-node]", container}, LeafNodeType: "It", LeafNodeText: text, State: state}
	if !strings.HasPrefix(container, "ordered") {
		s.ParallelProcess = len(text)
	}
	if state != "passed" {
		s.Failure.Message = "it is\n\t" + state
	}
	return s
}

func TestAgain(t *testing.T) {
	leftOut := spec("ordered", "left out", "skipped")
	leftOut.Failure.Message = ""
	first := []Spec{
		spec("Pods (all)", "start [Now]", "failed"), spec("Pods (all)", "start [Now] and stop", "passed"),
		spec("ordered", "one", "passed"), spec("ordered", "two", "timedout"), spec("ordered", "three", "skipped"), leftOut,
		spec("ordered too", "one", "passed"), spec("", "skips", "skipped"),
	}

	focus, ok := Again(first)
	if !ok {
		t.Fatal("there is no second try")
	}

	pattern, err := regexp.Compile(focus)
	if err != nil {
		t.Fatal(err)
	}

	var got []string
	for _, s := range first {
		if pattern.MatchString("E2eNode Suite " + s.Name()) {
			got = append(got, s.LeafNodeText)
		}
	}

	if want := []string{"start [Now]", "one", "two", "three"}; !slices.Equal(got, want) {
		t.Errorf("%q stands for %q, want %q", focus, got, want)
	}
}

// TestNotAgain wants no second try of what passed, of a run that fails
// throughout, and of one that did not come to its end.
func TestNotAgain(t *testing.T) {
	var many []Spec
	for i := range maxAgain + 1 {
		many = append(many, spec("Pods", fmt.Sprint(i), "failed"))
	}

	if _, ok := Again(many[1:]); !ok {
		t.Errorf("%d specs have no second try", maxAgain)
	}
	for _, first := range [][]Spec{
		nil,
		{spec("Pods", "start", "passed"), spec("Pods", "skip", "skipped"), spec("Pods", "wait", "pending")},
		many,
		{spec("Pods", "start", "failed"), spec("Pods", "stop", "interrupted")},
		{spec("Pods", "start", "failed"), {LeafNodeType: "AfterSuite", State: "failed"}},
	} {
		if focus, ok := Again(first); ok {
			t.Errorf("%v have a second try: %q", first, focus)
		}
	}
}

func TestMerge(t *testing.T) {
	first := []Spec{
		spec("Pods", "start", "passed"), spec("Pods", "stop", "failed"), spec("Pods", "break", "failed"), spec("Pods", "vanish", "failed"),
		spec("ordered", "one", "passed"), spec("ordered", "two", "failed"), spec("ordered", "three", "skipped"),
	}

	second := func(change ...Spec) []Spec {
		all := []Spec{
			spec("Pods", "start", "skipped"), spec("Pods", "stop", "passed"), spec("Pods", "break", "failed"), spec("Pods", "vanish", "skipped"),
			spec("ordered", "one", "passed"), spec("ordered", "two", "passed"), spec("ordered", "three", "passed"),
		}

		for _, c := range change {
			i := slices.IndexFunc(all, func(s Spec) bool { return s.Name() == c.Name() })
			if i < 0 {
				i, all = len(all), append(all, Spec{})
			}
			all[i] = c
		}

		return all
	}

	const stop, two = "[sig-node] Pods stop: failed: it is failed", "[sig-node] ordered two: failed: it is failed"
	for name, c := range map[string]struct {
		second []Spec
		states string // of the specs in order
		said   []string
	}{
		"some pass":               {second(), "passed passed failed failed passed passed passed", []string{stop, two}},
		"another of a container":  {second(spec("ordered", "one", "failed")), "passed passed failed failed passed failed skipped", []string{stop}},
		"one of a container":      {second(spec("ordered", "three", "skipped")), "passed passed failed failed passed passed skipped", []string{stop, two}},
		"the suite fails":         {second(Spec{LeafNodeType: "BeforeSuite", State: "failed"}), "passed failed failed failed passed failed skipped", nil},
		"nothing ran the 2nd try": {nil, "passed failed failed failed passed failed skipped", nil},
	} {
		var out strings.Builder
		all := Merge(&out, first, c.second)
		var states []string
		for _, s := range all {
			states = append(states, s.State)
		}

		if got := strings.Join(states, " "); got != c.states {
			t.Errorf("%s: got %s, want %s", name, got, c.states)
		}
		var want strings.Builder
		for _, s := range c.said {
			fmt.Fprintln(&want, "flaky, passed on retry:", s)
		}

		if out.String() != want.String() {
			t.Errorf("%s: said %q, want %q", name, &out, &want)
		}
	}

	if first[1].State != "failed" {
		t.Error("the first run was changed")
	}
}
