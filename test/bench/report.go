package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ours, theirs = "crisp", "containerd"
	// Between these lines a document has the report of the last run.
	reportBegins = "<!-- make bench: begin -->\n"
	reportEnds   = "<!-- make bench: end -->\n"
)

// publish writes samples, report and charts.
func (b *bench) publish(ctx context.Context, began time.Time) error {
	report := b.report(ctx, began)
	errs := []error{
		b.samples.write(filepath.Join(b.opt.out, "samples.json")),
		os.WriteFile(filepath.Join(b.opt.out, "report.md"), report, 0o644),
		b.charts(filepath.Join(b.opt.out, "performance")),
	}
	fmt.Printf("\n%s", report)
	if b.opt.publish != "" {
		errs = append(errs, b.charts(filepath.Join(b.opt.publish, "performance")),
			replaceReport(filepath.Join(b.opt.publish, "performance.md"), report))
	}
	return errors.Join(errs...)
}

// replaceReport puts a report into a document in the place of the last one.
func replaceReport(path string, report []byte) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, begins := bytes.Cut(doc, []byte(reportBegins))
	_, tail, ends := bytes.Cut(rest, []byte(reportEnds))
	if !begins || !ends {
		return fmt.Errorf("%s has no place for the report", path)
	}
	return os.WriteFile(path, slices.Concat(head, []byte(reportBegins), report, []byte(reportEnds), tail), 0o644)
}

func (b *bench) report(ctx context.Context, began time.Time) []byte {
	var w bytes.Buffer
	b.machine(ctx, &w, began)
	b.verdicts(&w)
	section := func(title, text string) { fmt.Fprintf(&w, "\n### %s\n\n%s\n\n", title, text) }
	if keys := b.samples.keys("serial"); len(keys) > 0 {
		section("One client", "Milliseconds.")
		b.table(&w, keys)
	}
	for _, n := range crowds {
		if keys := b.ofLoad("clients", n); len(keys) > 0 {
			section(fmt.Sprintf("%d clients", n), fmt.Sprintf("Milliseconds, and things done in a second by all of them, of %d.", n*podsEach))
			b.table(&w, keys)
		}
	}
	for _, n := range sizes {
		if keys := b.ofLoad("growth", n); len(keys) > 0 {
			section(fmt.Sprintf("%d pods running", n), "Milliseconds; memory in KiB, the proportional set size of the runtime's processes.")
			b.table(&w, keys)
		}
	}
	if keys := b.samples.keys("pull"); len(keys) > 0 {
		section("Pulls", "Milliseconds, from a registry on loopback, of images that the runtime has nothing of.")
		b.table(&w, keys)
	}
	if len(b.failed) > 0 {
		fmt.Fprintf(&w, "\n### Failures\n\n")
		for _, f := range b.failed {
			fmt.Fprintf(&w, "- %s\n", f)
		}
	}
	return w.Bytes()
}

func (b *bench) ofLoad(phase string, load int) []key {
	return slices.DeleteFunc(b.samples.keys(phase), func(k key) bool { return k.load != load })
}

// machine says on what, with what and when it was measured.
func (b *bench) machine(ctx context.Context, w *bytes.Buffer, began time.Time) {
	var uts unix.Utsname
	var info unix.Sysinfo_t
	_, _ = unix.Uname(&uts), unix.Sysinfo(&info) // empty is no harm
	model := "unknown processor"
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(cpuinfo)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
		}
	}
	cgroups := "v1"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		cgroups = "v2"
	}
	var versions []string
	for _, t := range b.targets {
		versions = append(versions, t.version)
	}
	if b.opt.peers != "" && b.opt.endpoint == "" {
		out, _ := exec.CommandContext(ctx, filepath.Join(b.opt.peers, "runc"), "--version").Output()
		first, _, _ := strings.Cut(string(out), "\n")
		versions = append(versions, first)
	}
	loads := slices.Sorted(slices.Values(b.loads))
	fmt.Fprintf(w, "%s, %d rounds of %d pods in turns, %.0f minutes.\n", began.UTC().Format("2 January 2006, 15:04 UTC"), b.opt.rounds, b.opt.samples, time.Since(began).Minutes())
	fmt.Fprintf(w, "%s; %s.\n", strings.Join(versions, ", "), runtime.Version())
	fmt.Fprintf(w, "%d × %s, %d MB, Linux %s, cgroup %s.\n", runtime.NumCPU(), model, uint64(info.Totalram)*uint64(info.Unit)>>20, unix.ByteSliceToString(uts.Release[:]), cgroups)
	if b.dir != "" {
		fmt.Fprintf(w, "The runtimes' data is on %s.\n", fileSystem(b.dir))
	}
	fmt.Fprintf(w, "Load average during the run: %.1f to %.1f, median %.1f.\n", quantile(loads, 0), quantile(loads, 1), quantile(loads, 0.5))
}

// fileSystem is the type of the file system that holds dir.
func fileSystem(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "an unknown file system"
	}
	switch fs.Type {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	}
	return fmt.Sprintf("a file system of type %#x", fs.Type)
}

// table prints a line for each key.
func (b *bench) table(w *bytes.Buffer, keys []key) {
	fmt.Fprintf(w, "| | %s p50 | p99 | %s p50 | p99 | times better, median of the rounds (from – to) |\n", ours, theirs)
	fmt.Fprintf(w, "|---|--:|--:|--:|--:|--:|\n")
	for _, k := range keys {
		name, a, c := k.name, b.samples.of(k, b.targets[0].name), b.samples.of(k, theirs)
		if floor := b.samples.of(k, alone); len(a) == 0 && len(c) == 0 {
			name, a = name+" (plugins alone)", floor
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", name, cells(a), cells(c), ratioCell(b.betterBy(k)))
		if floor := b.samples.of(k, alone); len(floor) > 0 && len(b.samples.of(k, b.targets[0].name)) > 0 {
			fmt.Fprintf(w, "| %s (plugins alone) | %s | | | |\n", k.name, cells(floor))
		}
	}
}

func cells(s series) string {
	v := s.whole()
	if len(v) == 0 {
		return " | "
	}
	return number(quantile(v, 0.5)) + " | " + number(quantile(v, 0.99))
}

// number has the digits that a measurement deserves.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// betterBy is by how many times crisp's median was better in each round, in
// order of size. Of rates, more is better.
func (b *bench) betterBy(k key) []float64 {
	a, c := b.samples.of(k, ours), b.samples.of(k, theirs)
	if isRate(k) {
		return c.ratios(a)
	}
	return a.ratios(c)
}

func isRate(k key) bool { return slices.Contains(rates[:], k.name) }

func ratioCell(r []float64) string {
	if len(r) == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f (%.1f – %.1f)", quantile(r, 0.5), r[0], r[len(r)-1])
}
