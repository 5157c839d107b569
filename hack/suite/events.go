package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"crisp/test/testkit/tally"
)

// outcomes are the results of tests, by package and test name. A package that
// failed as a whole, because it did not compile or its process died, is an
// entry without a test name.
type outcomes map[key]outcome

type outcome struct {
	action string // pass, skip or fail
	reason string // for that
	// flaky is the reason of the first outcome, if that was another.
	flaky string
}

type key struct{ pkg, test string }

// event is a line of go test -json.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

// longTest is from how many seconds on a passed test is printed, to show the
// progress of a run.
const longTest = 30

// read collects the events of a run and writes the output of failed tests to w,
// and a line for each package and each long test.
func (o outcomes) read(r io.Reader, w io.Writer) error {
	said := map[key]*strings.Builder{}
	for dec := json.NewDecoder(r); ; {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read the output of go test: %w", err)
		}

		k := key{e.Package, e.Test}
		switch e.Action {
		case "output":
			if said[k] == nil {
				said[k] = &strings.Builder{}
			}
			said[k].WriteString(e.Output)
		case "build-output":
			fmt.Fprint(w, e.Output)
		case "build-fail":
			o[key{pkg: e.ImportPath}] = outcome{action: "fail"}
		case "pass", "skip", "fail":
			e.tell(w, said[k])
			if e.Test != "" || e.Action == "fail" {
				o[k] = outcome{action: e.Action, reason: reason(said[k])}
			}
			delete(said, k)
		}
	}
}

// tell prints the result of a test or package with output.
func (e event) tell(w io.Writer, said *strings.Builder) {
	switch {
	case e.Action == "fail" && said != nil:
		fmt.Fprint(w, said)
	case e.Action != "pass":
	case e.Test == "":
		fmt.Fprintln(w, "ok", e.Package)
	case e.Elapsed >= longTest && !strings.Contains(e.Test, "/"):
		fmt.Fprintf(w, "ok %s %s, after %.0f s\n", e.Package, e.Test, e.Elapsed)
	}
}

// reason is the output of a test, without go test's own lines.
func reason(said *strings.Builder) string {
	if said == nil {
		return ""
	}
	var words []string
	for line := range strings.Lines(said.String()) {
		if !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(strings.TrimSpace(line), "--- ") {
			words = append(words, strings.Fields(line)...)
		}
	}
	return strings.Join(words, " ")
}

// merge adds the outcomes of another run: a test passed if it passed in one run
// and failed in none.
func (o outcomes) merge(other outcomes) {
	rank := map[string]int{"": 0, "skip": 1, "pass": 2, "fail": 3}
	for k, new := range other {
		if rank[new.action] > rank[o[k].action] {
			o[k] = new
		}
	}
}

// maxReason is how much of a reason, in bytes, is listed.
const maxReason = 500

// skipped lists the tests that were skipped in all runs, with the reason of
// each.
func (o outcomes) skipped() []string { return o.list("skip") }

// failed lists the failed tests, with their output.
func (o outcomes) failed() []string { return o.list("fail") }

func (o outcomes) list(action string) []string {
	var all []string
	for _, k := range o.leaves(action) {
		all = append(all, k.because(o[k].reason))
	}
	return all
}

// flaky lists the tests that passed on retry, with the output of their first
// run.
func (o outcomes) flaky() []string {
	var all []string
	for k, end := range o {
		if end.flaky != "" {
			all = append(all, k.because(end.flaky))
		}
	}
	slices.Sort(all)
	return all
}

func (k key) because(reason string) string {
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + " ..."
	}
	return fmt.Sprintf("%s %s: %s", k.pkg, k.test, cmp.Or(reason, "no reason given"))
}

// leaves are the tests with an outcome, in order, without those that subtests
// represent: a test with subtests is included only if it failed by itself.
func (o outcomes) leaves(action string) []key {
	parents, broken := o.ancestors()
	if action == "fail" {
		parents = broken
	}

	var all []key
	for k, end := range o {
		if end.action == action && !parents[k] {
			all = append(all, k)
		}
	}

	slices.SortFunc(all, func(a, b key) int {
		return cmp.Or(strings.Compare(a.pkg, b.pkg), strings.Compare(a.test, b.test))
	})
	return all
}

// forgive makes the tests in broken, which failed because of subtests, pass if
// none of those has failed in the end.
func (o outcomes) forgive(broken map[key]bool) {
	inner := slices.SortedFunc(maps.Keys(broken), func(a, b key) int { return cmp.Compare(len(b.test), len(a.test)) })
	for _, k := range inner {
		if _, still := o.ancestors(); !still[k] && o[k].action == "fail" {
			o[k] = outcome{action: "pass"}
		}
	}
}

// tally counts the tests. One with subtests is not counted, unless it failed by
// itself; nor is a package with tests.
func (o outcomes) tally() tally.Tally {
	return tally.Tally{
		Passed:  len(o.leaves("pass")),
		Failed:  len(o.leaves("fail")),
		Skipped: len(o.leaves("skip")),
	}
}

// ancestors are those with a child, and those with one that failed.
func (o outcomes) ancestors() (parents, broken map[key]bool) {
	parents, broken = map[key]bool{}, map[key]bool{}
	for k, end := range o {
		for p, ok := k.parent(); ok; p, ok = p.parent() {
			parents[p] = true
			broken[p] = broken[p] || end.action == "fail"
		}
	}
	return parents, broken
}

// parent is the test that k is a subtest of, or its package.
func (k key) parent() (key, bool) {
	if i := strings.LastIndexByte(k.test, '/'); i >= 0 {
		return key{k.pkg, k.test[:i]}, true
	}
	return key{pkg: k.pkg}, k.test != ""
}
