// Command suite runs all tests, for "make test" and CI: static checks, unit
// tests with the race detector, all tests as root, the conformance tests and
// the demo. At the end it lists skipped tests, and any leak of the tests on the
// machine is a failure. Its last line has the numbers of passed, failed and
// skipped tests; a test that ran twice counts once. Stages that take many
// minutes run only if they are selected by an argument, or, with -until, after
// the others as time allows; those that do not fit are listed at the end. A few
// of their failed tests are retried, each by itself, and are listed at the end
// too. Arguments select the stages to run instead. With -compiled it runs, on a
// machine that has no compiler, tests that were compiled on another.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"crisp/test/testkit/tally"
)

// stage is one part of the suite.
type stage struct {
	name string
	dir  string
	env  []string
	args []string
	// counts is how the stage reports its counts.
	counts counts
	// needs are make targets to build before the stage, in this order.
	needs string
	// takes is the maximum duration of a long stage, including its targets; 0
	// for the usual ones.
	takes time.Duration
}

type counts int

const (
	byEvents counts = iota // it prints go test's JSON
	byTally                // it writes a tally to the file given with -tally
	byStatus               // it is one test with an exit status
)

// userStages are those for any user, rootStages those that require root.
func userStages() []stage {
	return []stage{
		{name: "check", args: []string{"make", "--no-print-directory", "check"}, counts: byStatus},
		{name: "unit", env: []string{"CGO_ENABLED=1"}, args: []string{"go", "test", "-json", "-short", "-race", "./..."}},
	}
}

func rootStages() []stage {
	return append([]stage{
		{name: "root", env: []string{"CRISP_STRICT=1"}, args: []string{"go", "test", "-json", "-p=1", "-count=1", "-timeout=20m", "./..."}},
		{name: "seccomp", dir: "test/seccompdiff", env: []string{"CGO_ENABLED=1"}, args: []string{"go", "test", "-json", "./..."}},
		{name: "conformance", args: []string{".cache/bin/conformance"}, counts: byTally},
		{name: "demo", args: []string{".cache/bin/demo"}, counts: byStatus},
	}, longStages()...)
}

// longStages are those of many minutes, the most valuable for their duration
// first.
func longStages() []stage {
	goTest := func(s stage, args ...string) stage {
		s.env = append(s.env, "CRISP_STRICT=1")
		s.args = append([]string{"go", "test", "-json", "-count=1"}, args...)
		return s
	}

	crash := func(name, which string, takes time.Duration) stage {
		s := stage{name: name, dir: "test/crash", takes: takes}
		return goTest(s, "-tags=crash", "-timeout="+takes.String(), which, ".")
	}

	// These differ from run to run.
	const atRandom = "TestMoments|TestModel|TestStorm|TestPull|TestFaultLimits"
	return []stage{
		crash("crash", "-skip=TestFault|TestSoak|"+atRandom, 20*time.Minute),
		crash("faults", "-run=TestFault[^L]", 15*time.Minute),
		crash("soak", "-run=TestSoak", 5*time.Minute),
		crash("storm", "-run="+atRandom, 25*time.Minute),
		{name: "fuzz", takes: 6 * time.Minute, args: []string{"make", "--no-print-directory", "fuzz", "FUZZTIME=3s"}, counts: byStatus},
		{name: "vm", needs: "deb", takes: 25 * time.Minute, counts: byTally, args: []string{".cache/bin/vm", "-limit", "20m", "-only", "test/systemd|runtime/cgroup"}},
		goTest(stage{name: "node", needs: "kubernetes flannel images", takes: 40 * time.Minute}, "-tags=node", "-parallel=6", "-timeout=40m", "./test/node"),
	}
}

// chosen are the stages with these names, or without names the usual ones, and
// the long ones if there is a deadline.
func chosen(names []string, until time.Time, root bool) ([]stage, error) {
	all, rest := userStages(), rootStages()
	if root {
		all, rest = append(all, rest...), nil
	}

	for _, name := range names {
		called := func(s stage) bool { return s.name == name }
		if slices.ContainsFunc(rest, called) {
			return nil, fmt.Errorf("stage %s needs root", name)
		}
		if !slices.ContainsFunc(all, called) {
			var known []string
			for _, s := range append(all, rest...) {
				known = append(known, s.name)
			}
			return nil, fmt.Errorf("unknown stage %q: choose from %s", name, strings.Join(known, ", "))
		}
	}

	return slices.DeleteFunc(all, func(s stage) bool {
		if len(names) == 0 {
			return s.takes > 0 && until.IsZero()
		}
		return !slices.Contains(names, s.name)
	}), nil
}

// choose returns the stages that the command line selects.
func choose(compiled bool, sel selection, names []string, end time.Time) ([]stage, error) {
	if compiled && len(names) > 0 {
		return nil, fmt.Errorf("unexpected arguments %q: choose compiled tests with -only", names)
	}
	if compiled {
		return compiledStages(sel)
	}
	root := os.Geteuid() == 0
	if !root && len(names) == 0 {
		fmt.Println("not root: only unit tests run")
	}
	return chosen(names, end, root)
}

func main() {
	totals := flag.String("totals", "", "write the last line to this `file` too")
	numbers := flag.String("tally", "", "write the counts to this `file` too")
	compiled := flag.Bool("compiled", false, "run the compiled tests in the directories below this one, and critest")
	var sel selection
	flag.StringVar(&sel.only, "only", "", "with -compiled, run only the stages whose name matches this `pattern`")
	flag.StringVar(&sel.run, "run", "", "with -compiled, of the stages that are tests of Go run only the tests that match this `pattern`")
	flag.StringVar(&sel.part, "part", "", "with -compiled, run the share of machine `K/N`")

	until := flag.Int64("until", 0, "also run long stages that can finish by this Unix time in `seconds`")
	flag.BoolVar(&sel.long, "long", false, "with -compiled, also run long tests")
	flag.StringVar(&sel.reports, "reports", ".cache/conformance", "the `directory` for critest's reports, with -compiled")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal does not wait for the stage
	var end time.Time

	if *until > 0 {
		end = time.Unix(*until, 0)
	}
	some, err := choose(*compiled, sel, flag.Args(), end)
	if err != nil {
		fmt.Fprintln(os.Stderr, "suite:", err)
		os.Exit(1)
	}

	total := runAll(ctx, some, end)
	fmt.Println(total)
	if err := total.Write(*numbers); err != nil {
		fmt.Fprintln(os.Stderr, "suite:", err)
		os.Exit(1)
	}

	if *totals != "" {
		if err := os.WriteFile(*totals, fmt.Appendln(nil, total), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "suite:", err)
			os.Exit(1)
		}
	}

	if total.Failed > 0 {
		os.Exit(1)
	}
}

// runAll runs stages, all of them even if one fails, except long ones that may
// exceed the deadline.
func runAll(ctx context.Context, stages []stage, end time.Time) tally.Tally {
	var total tally.Tally
	var late []stage
	failed := func(err error) {
		fmt.Println("suite:", err)
		total.Failed++
	}

	room, err := newRoom()
	if err != nil {
		failed(err)
		return total
	}

	results := outcomes{}
	for _, s := range stages {
		if left := time.Until(end); s.takes > 0 && !end.IsZero() && left < s.takes {
			late = append(late, s)
			continue
		}

		fmt.Printf("\n===== %s\n", s.name)
		began := time.Now()
		t, err := s.run(ctx, results)
		if s.counts != byEvents {
			total = total.Add(t)
		}

		if err != nil {
			failed(fmt.Errorf("%s: %w", s.name, err))
		}
		fmt.Printf("===== %s: %s, %v\n", s.name, t, time.Since(began).Round(time.Second))
	}

	fmt.Println()
	if err := room.leave(); err != nil {
		failed(err)
	} else {
		total.Passed++
	}

	for _, s := range results.skipped() {
		fmt.Println("skipped:", s)
	}
	for _, s := range results.flaky() {
		fmt.Println("flaky, passed on retry:", s)
	}

	for _, s := range results.failed() {
		fmt.Println("failed:", s)
	}
	for _, s := range late {
		fmt.Printf("not run: %s: it may take %v, which exceeds the time left\n", s.name, s.takes)
	}

	return total.Add(results.tally())
}

// run runs a stage and returns its counts. Those of Go tests are added to
// results too, where they are merged with those of other stages.
func (s stage) run(ctx context.Context, results outcomes) (t tally.Tally, err error) {
	if s.needs != "" {
		build := exec.CommandContext(ctx, "make", append([]string{"--no-print-directory"}, strings.Fields(s.needs)...)...)
		build.Stdout, build.Stderr = os.Stdout, os.Stderr
		endTogether(build)
		if err := build.Run(); err != nil {
			return t, fmt.Errorf("make %s: %w", s.needs, err)
		}
	}
	if s.counts == byEvents {
		own := outcomes{}
		err = s.events(ctx, own)
		if s.takes > 0 && err == nil {
			err = s.again(ctx, own)
		}
		results.merge(own)
		return own.tally(), err
	}

	args, file := s.args, ""
	if s.counts == byTally {
		dir, err := os.MkdirTemp("", "crisp-suite-")
		if err != nil {
			return t, err
		}
		defer os.RemoveAll(dir)
		file = filepath.Join(dir, "tally.json")
		args = append(slices.Clone(args), "-tally", file)
	}

	cmd := s.command(ctx, args)
	cmd.Stdout = os.Stdout
	return s.judge(cmd.Run(), file)
}

// command is the stage's program with these arguments, not yet started.
func (s stage) command(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stderr = s.dir, append(os.Environ(), s.env...), os.Stderr
	endTogether(cmd)
	return cmd
}

// endTogether kills a program together with its children: go test does not
// forward signals to the tests. In its own process group it gets no signals
// from the terminal; this program does.
func endTogether(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
}

// judge returns the counts of a stage that does not print events.
func (s stage) judge(failed error, file string) (tally.Tally, error) {
	switch {
	case s.counts == byTally:
		t, err := tally.Read(file)
		return t, errors.Join(err, unless(t.Failed > 0, failed))
	case failed != nil:
		fmt.Println(failed)
		return tally.Tally{Failed: 1}, nil
	default:
		return tally.Tally{Passed: 1}, nil
	}
}

// unless returns err unless the failure is already known.
func unless(known bool, err error) error {
	if known {
		return nil
	}
	return err
}
