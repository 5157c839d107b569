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

// outcomes are the ends of tests, by package and test name. A package that
// failed as such, because it did not compile or its process died, is an entry
// without a test name.
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

// longTest is how many seconds make a test one that is named when it passed,
// so that who watches sees how far a run is.
const longTest = 30

// read collects the events of a run and writes to w what the tests that
// failed had to say, and a line for each package and each test that took long.
func (o outcomes) read(r io.Reader, w io.Writer) error {
	said := map[key]*strings.Builder{}
	for dec := json.NewDecoder(r); ; {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read what go test prints: %w", err)
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

// tell tells of the end of a test or package that said something.
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

// reason is what a test had to say, without what is said of it.
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

// merge adds the outcomes of another run: a test passed if it did in one run
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

// skipped lists the tests that ran nowhere, with the reason of each.
func (o outcomes) skipped() []string { return o.list("skip") }

// failed lists the tests that failed, with what each had to say.
func (o outcomes) failed() []string { return o.list("fail") }

func (o outcomes) list(action string) []string {
	var all []string
	for _, k := range o.leaves(action) {
		all = append(all, k.because(o[k].reason))
	}
	return all
}

// flaky lists the tests that passed at the second try, with what each had to
// say at the first.
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

// leaves are the tests with an outcome, in order, but for those of which others
// tell: a test that has subtests stands for them only if it failed by itself.
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

// forgive lets the tests in broken pass, which failed because of subtests, if
// none of those has failed after all.
func (o outcomes) forgive(broken map[key]bool) {
	inner := slices.SortedFunc(maps.Keys(broken), func(a, b key) int { return cmp.Compare(len(b.test), len(a.test)) })
	for _, k := range inner {
		if _, still := o.ancestors(); !still[k] && o[k].action == "fail" {
			o[k] = outcome{action: "pass"}
		}
	}
}

// tally counts the tests. One that has subtests stands for them, unless it
// failed by itself; and so does a package for its tests.
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
