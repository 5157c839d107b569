package specs

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxAgain is how many failed specs may be retried.
	maxAgain = 4
	// maxReason bounds a printed reason, in bytes.
	maxReason = 500
)

// Again is a pattern for the specs of a run that are retried, by themselves:
// those that failed, if these are few and the run was complete. In an ordered
// container each spec depends on those before it, so all are run.
func Again(first []Spec) (focus string, ok bool) {
	failed := failures(first)
	if len(failed) == 0 || len(failed) > maxAgain || slices.ContainsFunc(failed, Spec.endsRun) {
		return "", false
	}
	var names []string
	for _, s := range failed {
		for _, name := range together(first, s) {
			names = append(names, regexp.QuoteMeta(name))
		}
	}
	slices.Sort(names)
	// Ginkgo matches it against the suite's name, a space and the spec's.
	return " (" + strings.Join(slices.Compact(names), "|") + ")$", true
}

// Merge returns the results of a run, updated by those of another run with the
// specs that [Again] selected. One that passes now counts as passed if nothing
// in its container has failed; its first failure is written to w, for analysis.
func Merge(w io.Writer, first, second []Spec) []Spec {
	all, failed := slices.Clone(first), failures(second)
	if slices.ContainsFunc(failed, Spec.endsRun) {
		return all
	}

	passed := map[string]bool{}
	for _, s := range second {
		passed[s.Name()] = s.State == "passed"
	}

	for _, broken := range failures(first) {
		names := together(first, broken)
		if slices.ContainsFunc(failed, func(s Spec) bool { return slices.Contains(names, s.Name()) }) {
			continue
		}

		for i, s := range all {
			if s.State == "passed" || !passed[s.Name()] || !slices.Contains(names, s.Name()) {
				continue
			}
			all[i].State = "passed"
			if s.failed() {
				fmt.Fprintln(w, "flaky, passed on retry:", s.because())
			}
		}
	}

	return all
}

// failures are the specs that failed.
func failures(all []Spec) []Spec {
	return slices.DeleteFunc(slices.Clone(all), func(s Spec) bool { return !s.failed() })
}

func (s Spec) failed() bool {
	return !slices.Contains([]string{"passed", "skipped", "pending"}, s.State)
}

// endsRun reports whether a failure affects the whole run: one in the suite's
// setup, or an early end of the run.
func (s Spec) endsRun() bool {
	return s.LeafNodeType != "It" || s.State == "interrupted" || s.State == "aborted"
}

// together are the names of the specs to run for one: its own, or those of all
// that were to run in its container if that may be an ordered one. Ginkgo's
// report does not say so, but such a container is run by one process.
func together(all []Spec, s Spec) []string {
	var names []string
	for _, t := range all {
		if !slices.Equal(t.ContainerHierarchyTexts, s.ContainerHierarchyTexts) || !t.chosen() {
			continue
		}
		if (t.State == "passed" || t.failed()) && t.ParallelProcess != s.ParallelProcess {
			return []string{s.Name()}
		}
		names = append(names, t.Name())
	}
	return names
}

// chosen reports whether a spec ran or would have: one that a pattern left out
// is skipped without a message.
func (s Spec) chosen() bool { return s.State == "passed" || s.failed() || s.Failure.Message != "" }

func (s Spec) because() string {
	reason := strings.Join(strings.Fields(s.Failure.Message), " ")
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + " ..."
	}
	return fmt.Sprintf("%s: %s: %s", s.Name(), s.State, cmp.Or(reason, "no reason given"))
}
