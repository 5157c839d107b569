// Command conformance runs the NodeConformance specs of Kubernetes' node
// end-to-end suite, unchanged, on crisp: with a daemon, a registry and a
// network of its own.
//
// The suite starts etcd, the API server and kubelet by itself. It asks systemd
// to run kubelet; where systemd does not run, stand-ins for systemd-run,
// systemctl and sudo do.
package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crisp/test/node/cluster"
	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/tally"
)

//go:embed standins
var standins embed.FS

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
	flag.StringVar(&o.out, "out", ".cache/node-conformance", "the `folder` for reports and logs")
	flag.StringVar(&o.tally, "tally", "", "write the numbers to this `file` too")
	flag.IntVar(&o.procs, "procs", 6, "how many specs to run side by side")
	flag.DurationVar(&o.limit, "timeout", 2*time.Hour, "end specs that have not by then")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "conformance: a node needs root")
		os.Exit(1)
	}
	os.Exit(lab.Isolate(func() int { return conform(o) }))
}

// conform runs everything and returns the exit status.
func conform(o options) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	t, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		t.Failed++
	}
	if err := t.Write(o.tally); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		return 1
	}
	fmt.Println(t)
	if t.Failed > 0 {
		return 1
	}
	return 0
}

// run sets up a node and takes it down again.
func run(ctx context.Context, o options) (t tally.Tally, err error) {
	if o.out, err = filepath.Abs(o.out); err != nil {
		return t, err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return t, err
	}
	work, err := os.MkdirTemp("", "crisp-suite-")
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, leave(work)) }()
	if err := prepare(work); err != nil {
		return t, fmt.Errorf("prepare a node: %w", err)
	}
	l, err := lab.New(ctx, lab.Options{Config: `runtime_handlers = ["test-handler"]`})
	if err != nil {
		return t, err
	}
	t, err = test(ctx, o, l, work)
	return t, errors.Join(err, os.WriteFile(filepath.Join(o.out, "crisp.log"), []byte(l.Log()), 0o644), l.Close(context.WithoutCancel(ctx)))
}

// prepare makes the machine look like a node of the suite's: an address, and
// folders of our own where kubelet's are.
func prepare(work string) error {
	if err := cluster.AddAddress(); err != nil {
		return err
	}
	places := map[string]string{"lib": "/var/lib", "log": "/var/log"}
	for name, place := range places {
		if err := os.MkdirAll(filepath.Join(work, name, "kubelet"), 0o755); err != nil {
			return err
		}
		if err := mount(filepath.Join(work, name), place); err != nil {
			return err
		}
	}
	if err := mount("/var/lib/kubelet", "/var/lib/kubelet"); err != nil {
		return err
	}
	for _, dir := range []string{"bin", "units", "run/kubelet.conf.d"} {
		if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
			return err
		}
	}
	// No name server answers here; it should say so at once.
	resolver := filepath.Join(work, "resolv.conf")
	if err := os.WriteFile(resolver, []byte("nameserver 127.0.0.1\noptions attempts:1 timeout:1\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(resolver, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /etc/resolv.conf: %w", err)
	}
	return fs.WalkDir(standins, "standins", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := standins.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(work, "bin", d.Name()), text, 0o755)
	})
}

// mount binds a folder to a place and shares it with those who copy this
// namespace's mounts, and with nobody else.
func mount(dir, place string) error {
	if err := unix.Mount(dir, place, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", place, err)
	}
	for _, flags := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", place, "", flags, ""); err != nil {
			return fmt.Errorf("share %s: %w", place, err)
		}
	}
	return nil
}

// leave undoes prepare; what is mounted goes with the namespace.
func leave(work string) error {
	var errs []error
	points := append(inventory.MountsBelow("/var/lib"), inventory.MountsBelow("/var/log")...)
	for _, point := range append(points, "/var/lib", "/var/log", "/etc/resolv.conf") {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(work))...)
}

// settings are kubelet's, apart from those that the suite makes.
func settings(root string) map[string]any {
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"cgroupDriver": "cgroupfs", "cgroupRoot": root, "failCgroupV1": false, "failSwapOn": false,
		"podCIDR": "10.100.0.0/24", "volumeStatsAggPeriod": "10s", "fileCheckFrequency": "10s", "serializeImagePulls": false,
		"evictionHard":                     map[string]string{"memory.available": "50Mi", "nodefs.available": "200Mi", "nodefs.inodesFree": "1%"},
		"evictionPressureTransitionPeriod": "30s", "imageGCHighThresholdPercent": 99,
	}
}

// test runs the suite on a lab.
func test(ctx context.Context, o options, l *lab.Lab, work string) (t tally.Tally, err error) {
	cache, err := lab.Find()
	if err != nil {
		return t, err
	}
	suite, err := cache.Kubernetes("e2e_node.test")
	if err != nil {
		return t, err
	}
	root := "/" + l.Name + "/suite"
	if err := cluster.MakeGroups(root); err != nil {
		return t, err
	}
	cwd, units := filepath.Join(work, "run"), filepath.Join(work, "units")
	own := map[string]any{"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "kubeletCgroups": root + "/kubelet"}
	for file, content := range map[string]map[string]any{"base.yaml": settings(root), "kubelet.conf.d/10-crisp.conf": own} {
		text, err := json.Marshal(content)
		if err != nil {
			return t, err
		}
		if err := os.WriteFile(filepath.Join(cwd, file), text, 0o644); err != nil {
			return t, err
		}
	}
	report := filepath.Join(o.out, "report.json")
	if err := os.RemoveAll(report); err != nil {
		return t, err
	}
	// The suite runs, and keeps its files, in its own folder.
	bin, here := filepath.Dir(suite), filepath.Join(cwd, "e2e_node.test")
	if err := os.Symlink(suite, here); err != nil {
		return t, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "ginkgo"), fmt.Sprintf("--procs=%d", o.procs), "--timeout="+o.limit.String(), "--no-color",
		"--focus="+o.focus, "--skip="+o.skip, "--json-report=report.json", "--output-dir="+o.out, here, "--",
		"--k8s-bin-dir="+bin, "--container-runtime-endpoint="+l.Endpoint, "--kubelet-config-file="+filepath.Join(cwd, "base.yaml"),
		"--node-name=node-1", "--kubelet-flags=--node-ip="+cluster.ServerIP, "--prepull-images=false", "--report-dir="+o.out)
	cmd.Dir = cwd
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(work, "bin")+":"+bin+":"+os.Getenv("PATH"), "CRISP_UNITS="+units, "CRISP_WRAP="+cluster.OwnSysctls, "TMPDIR="+work)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	failed := cmd.Run()
	errs := []error{l.RemovePods(context.WithoutCancel(ctx))}
	for _, log := range logs(units) {
		errs = append(errs, os.Rename(log, filepath.Join(o.out, "kubelet.log")))
	}
	t, err = judge(report)
	if err != nil || t.Failed == 0 {
		errs = append(errs, failed)
	}
	return t, errors.Join(append(errs, err)...)
}

func logs(units string) []string {
	files, _ := filepath.Glob(filepath.Join(units, "*.log")) // the pattern is good
	return files
}

// judge counts the specs that were to run and prints those that failed or
// skipped themselves.
func judge(report string) (tally.Tally, error) {
	var t tally.Tally
	data, err := os.ReadFile(report)
	if err != nil {
		return t, err
	}
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts           []string
			LeafNodeType, LeafNodeText, State string
			Failure                           struct{ Message string }
			StartTime                         string
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return t, fmt.Errorf("read %s: %w", report, err)
	}
	for _, suite := range suites {
		for _, s := range suite.SpecReports {
			name := strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
			switch {
			case s.State == "passed" && s.LeafNodeType == "It":
				t.Passed++
			case s.State == "skipped" && s.Failure.Message != "":
				t.Skipped++
				fmt.Printf("skip %s\n     %s\n", name, s.Failure.Message)
			case s.State != "passed" && s.State != "skipped" && s.State != "pending":
				t.Failed++
				fmt.Printf("FAIL %s\n     %s: %s\n", name, s.State, s.Failure.Message)
			}
		}
	}
	return t, nil
}
