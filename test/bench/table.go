package main

import (
	"bytes"
	"fmt"
	"slices"
)

// table prints a row for each key.
func (b *bench) table(w *bytes.Buffer, keys []key) {
	own := slices.ContainsFunc(keys, func(k key) bool { return len(b.samples.of(k, oursOwn)) > 0 })

	head, rule := "", ""
	if own {
		head, rule = fmt.Sprintf(" %s p50 | p99 |", oursOwn), "--:|--:|"
	}
	fmt.Fprintf(w, "| | %s p50 | p99 |%s %s p50 | p99 | speed-up, median of the rounds (min – max) |\n", ours, head, theirs)
	fmt.Fprintf(w, "|---|--:|--:|%s--:|--:|--:|\n", rule)

	for _, k := range keys {
		name, a, c := k.name, b.samples.of(k, b.targets[0].name), b.samples.of(k, theirs)
		if floor := b.samples.of(k, alone); len(a) == 0 && len(c) == 0 {
			name, a = name+" (plugins alone)", floor
		}
		third := ""
		if own {
			third = cells(b.samples.of(k, oursOwn)) + " | "
			if floor := b.samples.of(k, ownAlone); len(b.samples.of(k, alone)) > 0 && name != k.name {
				third = cells(floor) + " | "
			}
		}
		fmt.Fprintf(w, "| %s | %s | %s%s | %s |\n", name+b.unitOf(k), cells(a), third, cells(c), b.ratioCell(k))
		if floor := b.samples.of(k, alone); len(floor) > 0 && len(b.samples.of(k, b.targets[0].name)) > 0 {
			third := ""
			if own {
				third = cells(b.samples.of(k, ownAlone)) + " | "
			}
			fmt.Fprintf(w, "| %s (plugins alone) | %s | %s| | |\n", k.name, cells(floor), third)
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

// number formats a measurement with three significant digits.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// speedUps returns the ratio of the medians in each round, sorted: above 1 crisp is
// better. Higher rates are better, and lower values of everything else.
func (b *bench) speedUps(k key) []float64 {
	a, c := b.samples.of(k, ours), b.samples.of(k, theirs)
	if b.isRate(k) {
		return c.ratios(a)
	}
	return a.ratios(c)
}

// isRate reports whether higher is better.
func (b *bench) isRate(k key) bool {
	return slices.Contains([]string{"1/s", "MB/s", "lines/s"}, b.samples.unit(k))
}

// ratioCell is empty for values that have no better and worse.
func (b *bench) ratioCell(k key) string {
	r := b.speedUps(k)
	if unit := b.samples.unit(k); len(r) == 0 || unit == "%" || unit == "commands" {
		return ""
	}
	return spread(r)
}

// spread formats the median, the minimum and the maximum of sorted values.
func spread(r []float64) string {
	if len(r) == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f (%.1f – %.1f)", quantile(r, 0.5), r[0], r[len(r)-1])
}

// unitOf returns a unit that the section's text does not mention.
func (b *bench) unitOf(k key) string {
	switch unit := b.samples.unit(k); unit {
	case "ms", "KiB", "1/s", "MB", "commands", "":
		return ""
	default:
		return ", " + unit
	}
}

// startsSection prints how long it takes to run a process, with each runtime and
// without a container. The ratio is to crisp's own command.
func (b *bench) startsSection(w *bytes.Buffer) {
	const base = "crisp run"
	k := key{bundlePhase, ranBundle, 0}
	var names []string
	for _, s := range b.samples.all {
		if s.Phase == bundlePhase && !slices.Contains(names, s.Runtime) {
			names = append(names, s.Runtime)
		}
	}
	if len(names) == 0 {
		return
	}

	fmt.Fprintf(w, "\n### One bundle, without the CRI\n\nMilliseconds from the start of the command to its exit; the program does nothing.\n\n")
	fmt.Fprintf(w, "| | p50 | p99 | relative to %s, median of the rounds (min – max) |\n|---|--:|--:|--:|\n", base)
	for _, name := range names {
		s := b.samples.of(k, name)
		ratio := ""
		if name != base {
			ratio = spread(b.samples.of(k, base).ratios(s))
		}
		fmt.Fprintf(w, "| %s | %s | %s |\n", name, cells(s), ratio)
	}
	b.notesOf(w, bundlePhase)
}
