// Command conformance runs the NodeConformance specs of Kubernetes' node
// end-to-end suite, unchanged, on crisp: with a daemon, a registry and a
// network of its own. The suite starts etcd, the API server and kubelet by
// itself. It uses systemd to run kubelet; if systemd does not run, stand-ins
// for systemd-run, systemctl and sudo are used.
package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"crisp/test/node/cluster"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/specs"
	"crisp/test/testkit/tally"
)

//go:embed skips.txt
var skips string

// options are the command line.
type options struct {
	focus, skip, out, tally string
	procs                   int
	limit                   time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.focus, "focus", `\[NodeConformance\]`, "run the specs whose name matches this `pattern`")
	flag.StringVar(&o.skip, "skip", `\[Flaky\]|\[Serial\]|\[Slow\]|\[Disruptive\]`, "but not those that match this `pattern`")
	flag.StringVar(&o.out, "out", ".cache/node-conformance", "the `directory` for reports and logs")
	flag.StringVar(&o.tally, "tally", "", "write the numbers to this `file` too")
	flag.IntVar(&o.procs, "procs", 8, "how many specs to run side by side")
	flag.DurationVar(&o.limit, "timeout", 2*time.Hour, "end specs that have not by then")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "conformance: a node needs root")
		os.Exit(1)
	}

	os.Exit(lab.Isolate(func() int {
		return tally.Main("node conformance", o.tally, func(ctx context.Context) (tally.Tally, error) { return run(ctx, o) })
	}))
}

// run sets up a node and tears it down again.
func run(ctx context.Context, o options) (t tally.Tally, err error) {
	if o.out, err = filepath.Abs(o.out); err != nil {
		return t, err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return t, err
	}

	m, err := newMachine()
	if err != nil {
		return t, fmt.Errorf("prepare a machine: %w", err)
	}
	defer func() { err = errors.Join(err, m.leave()) }()

	opt := lab.Options{Config: fmt.Sprintf("runtime_handlers = [%q]\ncadvisor_socket = %q\n", "test-handler", m.path(cadvisorSocket))}
	err = lab.Run(ctx, opt, filepath.Join(o.out, "crisp.log"), func(l *lab.Lab) error {
		t, err = test(ctx, o, l, m)
		return err
	})
	return t, err
}

// cadvisorSocket is the socket on which crisp serves kubelet's cAdvisor.
const cadvisorSocket = "containerd.sock"

// settings are kubelet's, in addition to those of the suite.
func settings() map[string]any {
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"cgroupDriver": "cgroupfs", "cgroupRoot": "/", "failCgroupV1": false, "failSwapOn": false,
		"podCIDR": "10.100.0.0/24", "volumeStatsAggPeriod": "10s", "fileCheckFrequency": "10s", "serializeImagePulls": false,
		"evictionHard":                     map[string]string{"memory.available": "50Mi", "nodefs.available": "200Mi", "nodefs.inodesFree": "1%"},
		"evictionPressureTransitionPeriod": "30s", "imageGCHighThresholdPercent": 99,
	}
}

// test runs the suite on a lab. A few failed specs are retried, with nothing
// running concurrently: the suite takes the machine to its limits, and some of
// its specs have races. Their first failure is printed.
func test(ctx context.Context, o options, l *lab.Lab, m *machine) (t tally.Tally, err error) {
	asked, err := o.asked()
	if err != nil {
		return t, err
	}

	s, again := suite{options: o, lab: l, machine: m, cwd: m.path("run")}, filepath.Join(o.out, "again")
	if s.excuses, err = specs.ParseExcuses(skips); err != nil {
		return t, err
	}
	if err := os.RemoveAll(again); err != nil {
		return t, err
	}

	all, failed, err := s.run(ctx)
	errs := []error{err}
	if focus, ok := specs.Again(all); ok && ctx.Err() == nil {
		fmt.Println("===== retrying" + focus)
		s.focus, s.procs, s.out, s.cwd = focus, 1, again, m.path("again")
		second, status, err := s.run(ctx)
		errs = append(errs, err)
		if err == nil {
			all, failed = specs.Merge(os.Stdout, all, second), status
		}
	}

	if err == nil || len(all) > 0 {
		t, err = specs.Judge(os.Stdout, all, asked, s.excuses)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil || t.Failed == 0 {
		return t, errors.Join(err, failed)
	}

	return t, nil
}

// asked reports which specs were selected.
func (o options) asked() (func(name string) bool, error) {
	focus, err := regexp.Compile(o.focus)
	if err != nil {
		return nil, fmt.Errorf("-focus: %w", err)
	}
	skip, err := regexp.Compile(o.skip)
	if err != nil {
		return nil, fmt.Errorf("-skip: %w", err)
	}
	return func(name string) bool { return focus.MatchString(name) && !skip.MatchString(name) }, nil
}

// suite is Kubernetes' suite, run in its own directory.
type suite struct {
	options
	excuses specs.Excuses
	lab     *lab.Lab
	machine *machine
	cwd     string
}

// run runs the suite and returns the results of its specs, and the program's
// error.
func (s suite) run(ctx context.Context) (all []specs.Spec, failed, err error) {
	const name = "report.json"
	report := filepath.Join(s.out, name)
	if err := errors.Join(os.MkdirAll(s.out, 0o755), os.RemoveAll(report)); err != nil {
		return nil, nil, err
	}
	cmd, err := s.command(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	failed = cmd.Run()
	errs := []error{s.lab.RemovePods(context.WithoutCancel(ctx)), s.clearUnits()}
	all, err = specs.Read(report)
	return all, failed, errors.Join(append(errs, err)...)
}

// clearUnits keeps kubelet's log and removes its unit: another run uses the
// first unit that it finds.
func (s suite) clearUnits() error {
	var errs []error
	for _, log := range logs(s.machine.Units) {
		errs = append(errs, os.Rename(log, filepath.Join(s.out, "kubelet.log")))
	}
	return errors.Join(append(errs, os.RemoveAll(s.machine.Units), os.Mkdir(s.machine.Units, 0o755))...)
}

// command is the program that runs the suite, with the name of its report.
func (s suite) command(ctx context.Context, report string) (*exec.Cmd, error) {
	cache, err := lab.Find()
	if err != nil {
		return nil, err
	}

	program, err := cache.Kubernetes("e2e_node.test")
	if err != nil {
		return nil, err
	}

	text, err := json.Marshal(settings())
	if err != nil {
		return nil, err
	}

	config, bin, here := filepath.Join(s.cwd, "base.yaml"), filepath.Dir(program), filepath.Join(s.cwd, "e2e_node.test")
	if err := os.MkdirAll(filepath.Join(s.cwd, "kubelet.conf.d"), 0o755); err != nil {
		return nil, err
	}

	if err := errors.Join(os.WriteFile(config, text, 0o644), os.Symlink(program, here)); err != nil {
		return nil, err
	}
	args := []string{fmt.Sprintf("--procs=%d", s.procs), "--timeout=" + s.limit.String(), "--no-color", "--focus=" + s.focus, "--skip=" + s.skip}
	for _, pattern := range s.excuses.LeftOut() {
		args = append(args, "--skip="+pattern)
	}

	args = append(args, "--json-report="+report, "--output-dir="+s.out, here, "--",
		"--k8s-bin-dir="+bin, "--container-runtime-endpoint="+s.lab.Endpoint, "--kubelet-config-file="+config,
		"--node-name=node-1", "--kubelet-flags=--node-ip="+cluster.ServerIP+" --containerd="+s.machine.path(cadvisorSocket), "--prepull-images=false", "--report-dir="+s.out)
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "ginkgo"), args...)
	cmd.Dir = s.cwd
	cmd.Env = append(s.machine.Env(bin), "TMPDIR="+s.machine.dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr

	return cmd, nil
}

func logs(units string) []string {
	files, _ := filepath.Glob(filepath.Join(units, "*.log")) // the pattern is valid
	return files
}
