// Command vm boots a virtual machine with what a node has and the machine it
// runs on may lack: systemd, the unified cgroup hierarchy, AppArmor and the
// kernel of a Debian release. It runs the tests in there, those that are about
// SELinux in one that has booted with that in place of AppArmor, or gives a
// login shell.
//
// There are three disks. The first holds Debian, is made once and kept in the
// cache under a name that tells what is in it. The second holds the checkout
// with its programs and compiled tests, and is made each time. To the third
// the machine writes an archive of its reports. What it writes to the first
// two is forgotten.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
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
	only    string
	mirror  string
	cache   string
	totals  string
	tally   string
	limit   time.Duration
	scale   float64
	// machines is how many run the tests side by side.
	machines int
}

func main() {
	var o options
	flag.BoolVar(&o.shell, "shell", false, "boot to a login shell on this terminal; ctrl-a x ends the machine")
	flag.StringVar(&o.only, "only", "", "run only the suites whose name matches this `pattern`")
	flag.BoolVar(&o.long, "long", false, "run the tests that take long, too")
	flag.BoolVar(&o.selinux, "selinux", false, "boot with SELinux in place of AppArmor; tests run with both unless this or -only is set")
	flag.BoolVar(&o.node, "node", false, "run the tests of a node of Kubernetes, and no others")
	flag.StringVar(&o.mirror, "mirror", "http://deb.debian.org/debian", "where Debian's packages come from")
	flag.StringVar(&o.cache, "cache", ".cache", "the checkout's `directory` of tools and images")
	flag.StringVar(&o.totals, "totals", "", "write the numbers to this `file` too")
	flag.StringVar(&o.tally, "tally", "", "write the numbers to this `file`, for programs")
	flag.DurationVar(&o.limit, "limit", 3*time.Hour, "how long the machine may run")
	flag.Float64Var(&o.scale, "scale", 0, "how much longer than on real hardware things may take; 0 chooses")
	flag.IntVar(&o.machines, "machines", 0, "how `many` machines share the tests, side by side; 0 chooses")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	total, err := run(ctx, o)
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

// run makes what is missing, boots, and returns the numbers of the tests.
func run(ctx context.Context, o options) (t tally.Tally, err error) {
	if _, err := regexp.Compile(o.only); err != nil {
		return t, fmt.Errorf("-only: %w", err)
	}
	if strings.ContainsAny(o.only, "'\n") {
		return t, fmt.Errorf("-only: %q has a quote or the end of a line, which no suite's name has", o.only)
	}

	if err := need("qemu-system-x86_64", "mmdebstrap", "mke2fs"); err != nil {
		return t, err
	}
	if o.cache, err = filepath.Abs(o.cache); err != nil {
		return t, err
	}

	base, err := makeBase(ctx, o)
	if err != nil {
		return t, fmt.Errorf("make the disk with Debian: %w", err)
	}

	a := accelerator()
	if o.scale == 0 {
		o.scale = a.scale
	}

	tests, err := makeDisk(ctx, o)
	if err != nil {
		return t, fmt.Errorf("make the disk with the tests: %w", err)
	}

	m := machine{base: base, tests: tests, accelerator: a, options: o}
	if o.shell {
		return t, m.shell(ctx)
	}

	reports := filepath.Join(o.cache, "vm", "reports")
	if err := os.RemoveAll(reports); err != nil {
		return t, err
	}
	return m.testAll(ctx, reports)
}
