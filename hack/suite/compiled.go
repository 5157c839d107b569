package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"crisp/test/testkit/pace"
)

// compiledTest is the name of a package's compiled tests, in its directory.
const compiledTest = "compiled.test"

// The tests in these directories run with either cgroup driver: those of the
// programs, and those of a node of Kubernetes.
const (
	endToEnd = "test/e2e"
	node     = "test/node"
)

// crashes are the tests that kill the daemon at its failpoints. They take long:
// some of their cases run if the suite is selected by name, all of them as long
// tests.
const (
	crashes   = "test/crash"
	someCases = "-every=5"
)

// packageTime is how long the tests of a package may take on busy real
// hardware.
const packageTime = 10 * time.Minute

// longTests try very many faults, which do not depend on the machine: an
// emulated one runs them only on request.
const longTests = "^(TestKilledAtEveryPoint|TestKilledWhilePulling|TestDiskRunsOut)$"

// nodeTests are those of a node that depend on the kernel and on systemd, and
// need neither a fast machine nor a full disk.
const nodeTests = "^TestNode$/^(ready|workloads|stats_from_CRI)$"

// selinuxTest is the test that needs a machine with SELinux.
const selinuxTest = "^TestSELinux$"

// selection selects the compiled tests to run, and the directory of their
// reports.
type selection struct {
	reports string
	only    string // a pattern of names
	run     string // a pattern of tests
	part    string // K/N: the share of this one of N machines
	long    bool   // include long tests
}

// compiledStages are those for a machine without compilers: tests that were
// compiled on another, the cheap ones first, and critest. Tests with a daemon
// run with either cgroup driver. With SELinux only the SELinux tests run.
func compiledStages(sel selection) ([]stage, error) {
	list := allStages
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		list = selinuxStages
	}
	all, err := list(sel)
	if err != nil {
		return nil, err
	}
	some, err := matching(running(all, sel.run), sel.only)
	if err != nil || sel.part == "" {
		return some, err
	}
	return share(some, sel.part)
}

// compiledTests runs the compiled tests in a directory.
func compiledTests(name, dir, choice string, env ...string) (stage, error) {
	test2json, err := filepath.Abs(".cache/bin/test2json")
	return stage{name: name, dir: dir, env: env, args: []string{
		test2json, "-t", "-p", "crisp/" + name, "./" + compiledTest,
		"-test.v=test2json", "-test.timeout=" + pace.Scale(packageTime).String(), choice,
	}}, err
}

// selinuxStages are those for a machine with SELinux. The package's test comes
// last, as it removes crisp's policy module.
func selinuxStages(sel selection) ([]stage, error) {
	own, err := compiledTests("test/selinux", "test/systemd", "-test.run="+selinuxTest)
	return []stage{{name: "critest/selinux", counts: byTally, args: []string{
		".cache/bin/conformance", "-focus", "SELinux", "-out", filepath.Join(sel.reports, "critest-selinux"),
	}}, own}, err
}

// allStages are those for any other machine.
func allStages(sel selection) ([]stage, error) {
	skip := selinuxTest
	if !sel.long {
		skip += "|" + longTests
	}

	var all, last []stage
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != compiledTest {
			return err
		}
		dir, choice, list := filepath.Dir(path), "-test.skip="+skip, &all
		if strings.HasPrefix(dir, "test/") {
			list = &last
		}
		if dir == node {
			choice = "-test.run=" + nodeTests
		}

		if dir == crashes {
			s, err := crashStage(sel)
			if sel.long || sel.only != "" {
				last = append(last, s)
			}
			return err
		}

		s, err := compiledTests(dir, dir, choice)
		*list = append(*list, s)
		if err == nil && (dir == endToEnd || dir == node) {
			s, err = compiledTests(dir+"/systemd", dir, choice, "CRISP_CGROUP_DRIVER=systemd")
			*list = append(*list, s)
		}

		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for compiled tests: %w", err)
	}

	if all = append(all, last...); slices.ContainsFunc(all, func(s stage) bool { return s.name == node }) {
		return all, nil
	}
	for _, driver := range []string{"cgroupfs", "systemd"} {
		all = append(all, stage{name: "critest/" + driver, counts: byTally, args: []string{
			".cache/bin/conformance", "-cgroup-driver", driver, "-out", filepath.Join(sel.reports, "critest-"+driver),
		}})
	}

	return all, nil
}

// crashStage runs the tests of crashes, with the programs that have failpoints.
func crashStage(sel selection) (stage, error) {
	programs, err := filepath.Abs(".cache/crash")
	if err != nil {
		return stage{}, err
	}
	s, err := compiledTests(crashes, crashes, "-test.run=^TestCrash$", "CRISP_CRASH_PROGRAMS="+programs)
	if !sel.long {
		s.args = append(s.args, someCases)
	}
	return s, err
}

// minutes is the approximate duration of a suite in an emulated machine.
func minutes(name string) int {
	switch {
	case strings.HasPrefix(name, endToEnd), strings.HasPrefix(name, node), name == crashes:
		return 40
	case strings.HasPrefix(name, "critest/"):
		return 15
	case name == "test/systemd":
		return 10
	case name == "runtime/keeper", name == "image/store":
		return 3
	}
	return 1
}

// running are the stages with only those tests that match a pattern. The last
// flag counts.
func running(stages []stage, pattern string) []stage {
	stages = slices.Clone(stages)
	for i, s := range stages {
		if pattern != "" && s.counts == byEvents {
			stages[i].args = append(slices.Clone(s.args), "-test.run="+pattern)
		}
	}
	return stages
}

// share is the part of the stages for one of several machines, "2/3" for the
// second of three, such that all take about the same time.
func share(stages []stage, part string) ([]stage, error) {
	var machine, machines int
	if _, err := fmt.Sscanf(part, "%d/%d", &machine, &machines); err != nil || machine < 1 || machine > machines {
		return nil, fmt.Errorf("-part: want two numbers like 1/2, have %q", part)
	}

	longest := slices.Clone(stages)
	slices.SortStableFunc(longest, func(a, b stage) int { return minutes(b.name) - minutes(a.name) })
	load := make([]int, machines)
	others := map[string]bool{}
	for _, s := range longest {
		least := slices.Index(load, slices.Min(load))
		load[least] += minutes(s.name)
		others[s.name] = least != machine-1
	}

	return slices.DeleteFunc(stages, func(s stage) bool { return others[s.name] }), nil
}

// matching are the stages whose names match a pattern.
func matching(stages []stage, pattern string) ([]stage, error) {
	only, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}

	var some []stage
	for _, s := range stages {
		if only.MatchString(s.name) {
			some = append(some, s)
		}
	}
	if len(some) == 0 {
		return nil, fmt.Errorf("-only: no suite matches %q", pattern)
	}

	return some, nil
}
