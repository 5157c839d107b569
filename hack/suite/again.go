package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// maxAgain is how many failed tests of a stage may be retried.
const maxAgain = 4

// again retries the tests that failed in a long stage, each by itself. Such a
// stage takes the machine to its limits while a CI machine may have other work,
// so a test that passes now counts as passed; its first failure is printed, and
// the test is listed as flaky.
func (s stage) again(ctx context.Context, first outcomes) error {
	failures := first.leaves("fail")
	_, broken := first.ancestors()
	if len(failures) > maxAgain || slices.ContainsFunc(failures, func(k key) bool { return k.test == "" || !first.whole(k.pkg) }) {
		return nil
	}

	for _, k := range failures {
		fmt.Printf("===== %s: retrying %s\n", s.name, k.test)
		second := outcomes{}
		if err := s.only(k.test).events(ctx, second); err != nil {
			fmt.Println("suite:", err) // it already counts as failed
			continue
		}

		if second[k].action == "pass" && second.tally().Failed == 0 {
			second[k] = outcome{action: "pass", flaky: cmp.Or(first[k].reason, "no reason given")}
			delete(first, k)
		}
		first.merge(second) // it may have subtests that did not run before
	}

	first.forgive(broken)
	return ctx.Err()
}

// whole reports whether all tests of a failed package ran: then they print FAIL
// themselves, before go test does.
func (o outcomes) whole(pkg string) bool {
	return strings.Count(o[key{pkg: pkg}].reason, "FAIL") > 1
}

// only is the stage with a single test.
func (s stage) only(test string) stage {
	parts := strings.Split(test, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	s.args = slices.DeleteFunc(slices.Clone(s.args), func(arg string) bool {
		return strings.HasPrefix(arg, "-run=") || strings.HasPrefix(arg, "-skip=")
	})
	s.args = slices.Insert(s.args, 2, "-run="+strings.Join(parts, "/")) // after "go test"
	return s
}

// events runs a stage that prints events, and collects its outcomes.
func (s stage) events(ctx context.Context, o outcomes) error {
	cmd := s.command(ctx, s.args)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}

	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := o.read(out, os.Stdout)
	waitErr := cmd.Wait()
	if readErr == nil && waitErr != nil && o.tally().Failed == 0 {
		return fmt.Errorf("go test failed although no test did: %w", waitErr)
	}

	return readErr
}
