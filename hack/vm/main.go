// Command vm boots a virtual machine with what a node has and the machine it
// runs on may lack: systemd, the unified cgroup hierarchy, AppArmor and the
// kernel of a Debian release. It runs the tests in there, the SELinux tests in
// one that was booted with SELinux instead of AppArmor, or opens a login shell.
// There are three disks. The first has Debian, is created once and cached under
// a name that identifies its content. The second has the checkout with its
// programs and compiled tests, and is created each time. To the third the
// machine writes an archive of its reports. Writes to the first two are
// discarded. With -arch the machine has another architecture: its programs and
// tests are compiled for that, from a cache of its own.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"crisp/test/testkit/tally"
)

// options are the command line.
type options struct {
	shell   bool
	long    bool
	selinux bool
	node    bool
	release string
	arch    arch
	pages   bool // of 16 KiB
	cgroup1 bool
	only    string
	tests   string // a pattern, as that of go test -run
	mirror  string
	cache   string
	totals  string
	tally   string
	limit   time.Duration
	scale   float64
	// machines is how many run the tests concurrently.
	machines int
}

func main() {
	var o options
	architecture := flag.String("arch", runtime.GOARCH, "boot a machine of this `architecture`: amd64 or arm64")
	flag.BoolVar(&o.shell, "shell", false, "boot to a login shell on this terminal; ctrl-a x stops the machine")
	flag.StringVar(&o.only, "only", "", "run only the suites whose name matches this `pattern`")
	flag.StringVar(&o.tests, "run", "", "of the suites that are tests of Go run only the tests that match this `pattern`")
	flag.BoolVar(&o.long, "long", false, "also run long tests, and the tests of crashes")
	flag.BoolVar(&o.selinux, "selinux", false, "boot with SELinux instead of AppArmor; tests run with both unless this or -only is set")
	flag.BoolVar(&o.node, "node", false, "run only the tests of a Kubernetes node")
	flag.StringVar(&o.release, "release", "trixie", "boot this `release` of Debian: bookworm (Linux 6.1), trixie (6.12) or sid (the newest)")
	flag.BoolVar(&o.pages, "16k", false, "boot a kernel whose pages have 16 KiB; arm64 only")
	flag.BoolVar(&o.cgroup1, "cgroup1", false, "boot with control groups of version 1; bookworm only")
	flag.StringVar(&o.mirror, "mirror", "http://deb.debian.org/debian", "the mirror of Debian's packages")
	flag.StringVar(&o.cache, "cache", ".cache", "the checkout's `directory` of tools and images")
	flag.StringVar(&o.totals, "totals", "", "write the counts to this `file` too")
	flag.StringVar(&o.tally, "tally", "", "write the counts to this `file`, for programs")
	flag.DurationVar(&o.limit, "limit", 3*time.Hour, "how long the machine may run")
	flag.Float64Var(&o.scale, "scale", 0, "factor for timeouts compared to real hardware; 0 chooses")
	flag.IntVar(&o.machines, "machines", 0, "how `many` machines share the tests concurrently; 0 chooses")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	var total tally.Tally
	var err error
	if o.arch, err = findArch(*architecture); err != nil {
		err = fmt.Errorf("-arch: %w", err)
	} else {
		total, err = run(ctx, o)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		total.Failed++
	}

	if err := total.Write(o.tally); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		total.Failed++
	}

	if o.totals != "" {
		if err := os.WriteFile(o.totals, fmt.Appendln(nil, total), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "vm:", err)
			total.Failed++
		}
	}
	if !o.shell {
		fmt.Println(total)
	}

	if total.Failed > 0 {
		os.Exit(1)
	}
}

// run builds what is missing, boots, and returns the counts of the tests.
func run(ctx context.Context, o options) (t tally.Tally, err error) {
	for name, pattern := range map[string]string{"-only": o.only, "-run": o.tests} {
		if _, err := regexp.Compile(pattern); err != nil {
			return t, fmt.Errorf("%s: %w", name, err)
		}
		if strings.ContainsAny(pattern, "'\n") {
			return t, fmt.Errorf("%s: %q contains a quote or a newline, which no name has", name, pattern)
		}
	}

	if err := need(o.arch.programs()...); err != nil {
		return t, err
	}
	if o.cache, err = filepath.Abs(o.cache); err != nil {
		return t, err
	}

	r, err := findRelease(o.release)
	if err != nil {
		return t, fmt.Errorf("-release: %w", err)
	}
	if r.bigPages = o.pages; o.pages && o.arch.name != "arm64" {
		return t, fmt.Errorf("-16k: the pages of %s have 4 KiB", o.arch.name)
	}
	r.selinux = r.selinux && o.arch.selinux
	if o.cgroup1 && r.cgroup1 == "" {
		return t, fmt.Errorf("-cgroup1: %s is not set up for version 1", r.name)
	}
	if o.selinux && !r.selinux {
		return t, fmt.Errorf("-selinux: %s is installed without a policy", r.name)
	}

	base, err := makeBase(ctx, o, r)
	if err != nil {
		return t, fmt.Errorf("create the disk with Debian: %w", err)
	}

	a := o.arch.accelerator()
	if o.scale == 0 {
		o.scale = a.scale
	}

	tests, err := makeDisk(ctx, o)
	if err != nil {
		return t, fmt.Errorf("create the disk with the tests: %w", err)
	}

	m := machine{release: r, base: base, tests: tests, accelerator: a, options: o}
	if o.shell {
		return t, m.shell(ctx)
	}

	reports := filepath.Join(o.cache, "vm", "reports")
	if err := os.RemoveAll(reports); err != nil {
		return t, err
	}
	return m.testAll(ctx, reports)
}
