package main

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

// spec is what critest reports of one spec (ginkgo's JSON).
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	Failure                 struct{ Message string }
}

func (s spec) name() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

// readReport reads the specs. One that is not a test but a set-up or clean-up
// of the suite is there only if it failed.
func readReport(path string) ([]spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var suites []struct{ SpecReports []spec }
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("read critest's report: %w", err)
	}
	if len(suites) != 1 {
		return nil, fmt.Errorf("read critest's report: want one suite, have %d", len(suites))
	}
	return slices.DeleteFunc(suites[0].SpecReports, func(s spec) bool {
		return s.LeafNodeType != "It" && s.State == "passed"
	}), nil
}

// judge counts the specs and writes those that did not pass to w, with the
// reason. A spec that skipped itself without leave has failed.
func judge(w io.Writer, specs []spec, skips []skip) (tally.Tally, error) {
	var t tally.Tally
	if len(specs) == 0 {
		return t, errors.New("critest ran no specs")
	}
	for _, s := range specs {
		switch s.State {
		case "passed":
			t.Passed++
		case "skipped", "pending":
			i := slices.IndexFunc(skips, func(k skip) bool { return k.pattern.MatchString(s.name()) })
			if i < 0 {
				t.Failed++
				fmt.Fprintf(w, "FAIL %s\n     skipped, but is not in the skip list: %s\n", s.name(), s.Failure.Message)
				continue
			}
			t.Skipped++
			if skips[i] == focused {
				continue
			}
			fmt.Fprintf(w, "skip %s\n     %s\n", s.name(), skips[i].reason)
		default:
			t.Failed++
			fmt.Fprintf(w, "FAIL %s\n     %s: %s\n", s.name(), s.State, s.Failure.Message)
		}
	}
	return t, nil
}
