package main

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"crisp/test/testkit/pace"
)

// compiledTest is the name of a package's compiled tests, in its folder.
const compiledTest = "compiled.test"

// packageTime is how long the tests of a package may take on real hardware.
const packageTime = 5 * time.Minute

// longTests go through very many faults, none of which is of another kind on
// another machine: an emulated one runs them when asked to.
const longTests = "^(TestKilledAtEveryPoint|TestKilledWhilePulling|TestDiskRunsOut)$"

// compiledStages are those for a machine without compilers: tests that were
// compiled on another, the cheap ones first, and critest with either driver.
// Those whose name does not match only are left out, and unless long is set
// the tests that take long, too.
func compiledStages(reports, only string, long bool) ([]stage, error) {
	var skip []string
	if !long {
		skip = append(skip, "-test.skip="+longTests)
	}
	var all, last []stage
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != compiledTest {
			return err
		}
		dir := filepath.Dir(path)
		test2json, err := filepath.Abs(".cache/bin/test2json")
		s := stage{name: dir, dir: dir, args: append([]string{
			test2json, "-p", "crisp/" + dir, "./" + compiledTest,
			"-test.v=test2json", "-test.timeout=" + pace.Scale(packageTime).String(),
		}, skip...)}
		if strings.HasPrefix(dir, "test/") {
			last = append(last, s)
		} else {
			all = append(all, s)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for compiled tests: %w", err)
	}
	all = append(all, last...)
	for _, driver := range []string{"cgroupfs", "systemd"} {
		all = append(all, stage{name: "critest/" + driver, counts: byTally, args: []string{
			".cache/bin/conformance", "-cgroup-driver", driver, "-out", filepath.Join(reports, "critest-"+driver),
		}})
	}
	return matching(all, only)
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
