// Package specs evaluates the report of a Ginkgo suite: all selected specs must
// pass, except those in a list of excuses.
package specs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"crisp/test/testkit/tally"
)

// Spec is one spec in Ginkgo's JSON report.
type Spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	ParallelProcess         int
	Failure                 struct{ Message string }
}

// Name consists of the texts of the spec and its containers.
func (s Spec) Name() string {
	return join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText))
}

// join builds a name as Ginkgo does, which omits empty texts.
func join(texts []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(texts), func(s string) bool { return s == "" }), " ")
}

// Read reads a report. Setup and cleanup nodes of the suite are only included
// if they failed.
func Read(path string) ([]Spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}

	var suites []struct{ SpecReports []Spec }
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("read the suite's report %s: %w", path, err)
	}

	if len(suites) != 1 {
		return nil, fmt.Errorf("read the suite's report %s: it has %d suites instead of one", path, len(suites))
	}
	return slices.DeleteFunc(suites[0].SpecReports, func(s Spec) bool {
		return s.LeafNodeType != "It" && s.State == "passed"
	}), nil
}

// Judge counts the selected specs and writes those that did not pass to w, with
// the reason. One that was skipped without an excuse failed.
func Judge(w io.Writer, specs []Spec, asked func(name string) bool, excuses Excuses) (tally.Tally, error) {
	var t tally.Tally
	for _, s := range specs {
		name := s.Name()
		switch s.State {
		case "passed":
			t.Passed++
		case "skipped", "pending":
			if !asked(name) {
				continue
			}
			reason, ok := excuses.reason(name)
			if !ok {
				t.Failed++
				fmt.Fprintf(w, "FAIL %s\n     skipped, for which there is no excuse in the list: %s\n", name, s.Failure.Message)
				continue
			}
			t.Skipped++
			fmt.Fprintf(w, "skip %s\n     %s\n", name, reason)
		default:
			t.Failed++
			fmt.Fprintf(w, "FAIL %s\n     %s: %s\n", name, s.State, s.Failure.Message)
		}
	}

	if t == (tally.Tally{}) {
		return t, errors.New("the suite ran no specs")
	}
	return t, nil
}
