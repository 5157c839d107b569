package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	ours, theirs = "crisp", "containerd"
	// oursOwn is crisp with its own network instead of the CNI plugins.
	oursOwn = "crisp, own network"
	// The report of the last run is between these lines in a document.
	reportBegins = "<!-- make bench: begin -->\n"
	reportEnds   = "<!-- make bench: end -->\n"
)

// publish writes samples, report and charts.
func (b *bench) publish(ctx context.Context, began time.Time) error {
	report := b.report(ctx, began)
	errs := []error{
		b.samples.write(filepath.Join(b.opt.out, "samples.json")),
		os.WriteFile(filepath.Join(b.opt.out, "report.md"), report, 0o644),
		b.draw(filepath.Join(b.opt.out, "performance")),
	}
	fmt.Printf("\n%s", report)
	if b.opt.publish != "" {
		errs = append(errs, b.draw(filepath.Join(b.opt.publish, "performance")),
			replaceReport(filepath.Join(b.opt.publish, "performance.md"), report))
	}
	return errors.Join(errs...)
}

// replaceReport replaces the report in a document.
func replaceReport(path string, report []byte) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, begins := bytes.Cut(doc, []byte(reportBegins))
	_, tail, ends := bytes.Cut(rest, []byte(reportEnds))
	if !begins || !ends {
		return fmt.Errorf("%s lacks the marks around the report", path)
	}
	return os.WriteFile(path, slices.Concat(head, []byte(reportBegins), report, []byte(reportEnds), tail), 0o644)
}

func (b *bench) report(ctx context.Context, began time.Time) []byte {
	var w bytes.Buffer
	b.machine(ctx, &w, began)
	b.verdicts(&w)
	b.section(&w, "serial", 0, "One client", "Milliseconds.")
	b.startsSection(&w)
	b.checkpointSections(&w)

	for _, n := range crowds {
		b.section(&w, "clients", n, fmt.Sprintf("%d clients", n), fmt.Sprintf("Milliseconds, and operations per second by all of them, of %d.", n*podsEach))
	}
	b.telemetrySection(&w)

	for _, n := range sizes {
		text := "Milliseconds; memory in KiB, the proportional set size of the runtime's processes."
		if n > networked {
			text += fmt.Sprintf(" Pods beyond %d use the node's network.", networked)
		}
		b.section(&w, "growth", n, fmt.Sprintf("%d pods running", n), text)
	}

	b.notesOf(&w, "growth")
	b.scaleSections(&w)
	b.section(&w, "pull", 0, "Pulls", "Milliseconds, from a registry on loopback.")
	b.notesOf(&w, "pull")
	b.section(&w, trafficPhase, 0, "Traffic from the registry", "MB of responses in each of these pulls.")

	for _, n := range lineLengths {
		b.section(&w, "logs", n, fmt.Sprintf("Logs, lines of %d bytes", n), fmt.Sprintf("One container that writes %d MiB as fast as it can.", b.opt.logged))
	}
	b.section(&w, "execs", 0, "Memory over many commands", fmt.Sprintf("%d clients run commands in one container.", executors))
	b.notesOf(&w, "execs")
	b.section(&w, "critest", 0, "critest -benchmark", "Milliseconds, as critest measures them.")
	b.notesOf(&w, "critest")

	if charts := b.charts(); len(charts) > 0 {
		fmt.Fprintf(&w, "\n### Charts\n\n")
		for _, c := range charts {
			fmt.Fprintf(&w, "![%s](performance/%s)\n", c.title, c.file)
		}
	}

	if len(b.failed) > 0 {
		fmt.Fprintf(&w, "\n### Failures\n\n")
		for _, f := range b.failed {
			fmt.Fprintf(&w, "- %s\n", f)
		}
	}

	return w.Bytes()
}

// section prints the measurements of a phase at a load, if there are any.
func (b *bench) section(w *bytes.Buffer, phase string, load int, title, text string) {
	if keys := b.ofLoad(phase, load); len(keys) > 0 {
		fmt.Fprintf(w, "\n### %s\n\n%s\n\n", title, text)
		b.table(w, keys)
	}
}

// notesOf prints what is missing in the results of a phase.
func (b *bench) notesOf(w *bytes.Buffer, phase string) {
	if len(b.notes[phase]) > 0 {
		fmt.Fprintln(w)
	}
	for _, n := range b.notes[phase] {
		fmt.Fprintf(w, "- %s\n", n)
	}
}

func (b *bench) ofLoad(phase string, load int) []key {
	return slices.DeleteFunc(b.samples.keys(phase), func(k key) bool { return k.load != load })
}
