// Command conformance runs critest, unchanged, against bin/crisp, on a
// daemon, a registry and a network of its own, and prints what passed, what
// failed and why the rest was skipped.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/specs"
	"crisp/test/testkit/tally"
)

//go:embed skips.txt
var skips string

// options are the command line.
type options struct {
	endpoint, focus, driver, out, tally string
	verbose                             bool
}

func main() {
	var o options
	flag.StringVar(&o.endpoint, "endpoint", "", "test the runtime at this `socket` (unix://…) instead of a crisp of our own")
	flag.StringVar(&o.focus, "focus", "", "run only the specs whose name matches this `pattern`")
	flag.StringVar(&o.driver, "cgroup-driver", "cgroupfs", "the `driver` of a crisp of our own, cgroupfs or systemd")
	flag.StringVar(&o.out, "out", ".cache/conformance", "the `directory` for reports and the daemon's log")
	flag.StringVar(&o.tally, "tally", "", "write the numbers to this `file` too")
	flag.BoolVar(&o.verbose, "v", false, "print every step of every spec")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "conformance: critest makes pods and mounts: run as root")
		os.Exit(1)
	}

	conform := func() int {
		return tally.Main("conformance", o.tally, func(ctx context.Context) (tally.Tally, error) { return run(ctx, o) })
	}
	if o.endpoint != "" {
		os.Exit(conform())
	}
	os.Exit(lab.Isolate(conform))
}

// run sets up a lab if none is given and tests in it. Whatever the lab's end
// finds wrong is in the error.
func run(ctx context.Context, o options) (t tally.Tally, err error) {
	if o.out, err = filepath.Abs(o.out); err != nil {
		return t, err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return t, err
	}

	cache, err := lab.Find()
	if err != nil {
		return t, err
	}

	critest, err := cache.Tool("critest")
	if err != nil {
		return t, err
	}

	if o.endpoint != "" {
		return test(ctx, o, critest)
	}
	err = lab.Run(ctx, lab.Options{CgroupDriver: o.driver}, filepath.Join(o.out, "crisp.log"), func(l *lab.Lab) error {
		o.endpoint = l.Endpoint
		t, err = test(ctx, o, critest)
		return err
	})

	return t, err
}

// test runs critest against an endpoint.
func test(ctx context.Context, o options, critest string) (t tally.Tally, err error) {
	focus, err := regexp.Compile(o.focus)
	if err != nil {
		return t, fmt.Errorf("-focus: %w", err)
	}

	excuses, err := specs.ParseExcuses(skips)
	if err != nil {
		return t, err
	}

	tmp, err := os.MkdirTemp("", "crisp-conformance-")
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()

	reportFile := filepath.Join(o.out, "critest.json")
	if err := os.RemoveAll(reportFile); err != nil {
		return t, err
	}

	args := []string{
		"-runtime-endpoint=" + o.endpoint, "-ginkgo.json-report=" + reportFile,
		fmt.Sprintf("-ginkgo.v=%t", o.verbose), "-ginkgo.no-color",
	}

	if o.focus != "" {
		args = append(args, "-ginkgo.focus="+o.focus)
	}
	for _, pattern := range excuses.LeftOut() {
		args = append(args, "-ginkgo.skip="+pattern)
	}

	cmd := exec.CommandContext(ctx, critest, args...)
	cmd.Dir, cmd.Env = tmp, append(os.Environ(), "TMPDIR="+tmp)

	// Its client complains there of every call that fails, also of those that should.
	complaints, err := os.Create(filepath.Join(o.out, "critest.err"))
	if err != nil {
		return t, err
	}
	defer complaints.Close()

	cmd.Stdout, cmd.Stderr = os.Stdout, complaints
	// An interrupted critest removes its pods before it ends.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	failed := cmd.Run()
	var exit *exec.ExitError
	if failed != nil && !errors.As(failed, &exit) {
		return t, fmt.Errorf("run critest: %w", failed)
	}

	all, err := specs.Read(reportFile)
	if err != nil {
		return t, errors.Join(failed, err)
	}

	t, err = specs.Judge(os.Stdout, all, focus.MatchString, excuses)
	if err == nil && failed != nil && t.Failed == 0 {
		err = fmt.Errorf("critest found fault with something that is not in its report: %w", failed)
	}
	return t, err
}
