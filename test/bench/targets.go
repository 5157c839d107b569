package main

import (
	"bytes"
	"fmt"
	"slices"
)

// goal is a performance goal of crisp. value returns ok false if it was not
// measured.
type goal struct {
	text    string
	limit   float64
	atLeast bool // the limit is a lower bound
	unit    string
	value   func(b *bench) (v float64, ok bool)
}

// goals lists all goals; those for pulls depend on the size of the images.
func (b *bench) goals() []goal {
	all := []goal{
		{"pod ready, beyond the plugins' own time", 12, false, "ms", (*bench).beyondPlugins},
		{"pod ready, against containerd", 3, true, "×", times("serial", "pod ready", 0)},
		{"CreateContainer", 2, false, "ms", middle("serial", "CreateContainer", 0)},
		{"StartContainer", 3, false, "ms", middle("serial", "StartContainer", 0)},
		{"ExecSync", 3, false, "ms", middle("serial", "ExecSync", 0)},
		{"StopContainer", 4, false, "ms", middle("serial", "StopContainer", 0)},
		{"RemoveContainer", 2, false, "ms", middle("serial", "RemoveContainer", 0)},
		{"RemovePodSandbox", 3, false, "ms", middle("serial", "RemovePodSandbox", 0)},
		{"pods started per second by 32 clients, against containerd", 3, true, "×", times("clients", started, 32)},
		{"memory per pod, at 100 pods", 100, false, "KiB", (*bench).memoryPerPod},
		{"memory of the daemon at 100 pods", 40 * 1024, false, "KiB", middle("growth", "PSS crisp", 100)},
		{"pod ready at 100 pods, with metrics and traces against without", 2, false, "%", (*bench).telemetryCost},
		{"memory of metrics and traces, at 100 pods", 6 * 1024, false, "KiB", (*bench).telemetryMemory},
		{"list of 500 pods", 5, false, "ms", middle("growth", "ListPodSandbox", 500)},
		{"list of 500 pods while one is stuck", 5, false, "ms", middle("growth", "ListPodSandbox"+whileStuck, 500)},
		{"restart with 300 pods", 1000, false, "ms", middle("growth", "restart", 300)},
		{"growth of memory over many commands", 5, false, "%", middle("execs", sizeGrowth, 0)},
	}

	for _, k := range crowdedKinds() {
		all = append(all, b.crowdGoals(k)...)
	}

	for _, k := range kinds(b.opt.scale) {
		minimum := 1.0
		if k.files > 1 {
			minimum = 1.5
		}
		all = append(all, goal{"pull of " + k.text + ", against containerd", minimum, true, "×", times("pull", k.text, 0)})
	}

	return all
}

// crowdGoals lists the goals for many pods of a kind.
func (b *bench) crowdGoals(k crowdKind) []goal {
	text := func(what string) string { return fmt.Sprintf("%s, %d pods %s", what, many, k.title) }
	return []goal{
		{text("ListPodSandboxStats"), 300, false, "ms", middle(k.phase, "ListPodSandboxStats", many)},
		{text(metrics), 300, false, "ms", middle(k.phase, metrics, many)},
		{text("ListPodSandbox"), 10, false, "ms", middle(k.phase, "ListPodSandbox", many)},
		{text("ExecSync, against that with " + fmt.Sprint(few)), 1.5, false, "×", growthOf(k.phase, "ExecSync")},
		{text("restart"), 1000, false, "ms", middle(k.phase, "restart", many)},
		{text("memory of daemon and keeper"), 90 * 1024, false, "KiB", middle(k.phase, "PSS", many)},
	}
}

// growthOf returns the median of crisp's samples with many pods, as a multiple of
// that with few.
func growthOf(phase, name string) func(b *bench) (float64, bool) {
	return func(b *bench) (float64, bool) {
		before, ok := middle(phase, name, few)(b)
		after, measured := middle(phase, name, many)(b)
		if !ok || !measured {
			return 0, false
		}
		return after / before, true
	}
}

// middle returns the median of crisp's samples.
func middle(phase, name string, load int) func(b *bench) (float64, bool) {
	return func(b *bench) (float64, bool) {
		v := b.samples.of(key{phase, name, load}, ours).whole()
		return quantile(v, 0.5), len(v) > 0
	}
}

// times returns crisp's speed-up, the median of the rounds.
func times(phase, name string, load int) func(b *bench) (float64, bool) {
	return func(b *bench) (float64, bool) {
		r := b.speedUps(key{phase, name, load})
		return quantile(r, 0.5), len(r) > 0
	}
}

// beyondPlugins returns the time to start a pod minus that of the CNI plugins
// alone, the median of the rounds.
func (b *bench) beyondPlugins() (float64, bool) {
	add := b.samples.of(key{"serial", "CNI ADD", 0}, alone).medians()
	var more []float64
	for round, ready := range b.samples.of(key{"serial", "pod ready", 0}, ours).medians() {
		if floor, ok := add[round]; ok {
			more = append(more, ready-floor)
		}
	}
	slices.Sort(more)
	return quantile(more, 0.5), len(more) > 0
}

// memoryPerPod returns the growth of the runtime's memory per pod, for 100 pods.
func (b *bench) memoryPerPod() (float64, bool) {
	none, many := b.samples.of(key{"growth", "PSS", 0}, ours).whole(), b.samples.of(key{"growth", "PSS", 100}, ours).whole()
	return (quantile(many, 0.5) - quantile(none, 0.5)) / 100, len(none) > 0 && len(many) > 0
}

// verdicts prints which goals were reached.
func (b *bench) verdicts(w *bytes.Buffer) {
	fmt.Fprintf(w, "\n### Goals\n\n| | goal | measured | |\n|---|--:|--:|---|\n")
	for _, g := range b.goals() {
		v, ok := g.value(b)
		if !ok {
			continue
		}

		bound, miss, verdict := "at most", v-g.limit, "reached"
		if g.atLeast {
			bound, miss = "at least", g.limit-v
		}

		if miss > 0 {
			verdict = fmt.Sprintf("**missed by %s %s**", number(miss), g.unit)
		}
		fmt.Fprintf(w, "| %s | %s %g %s | %s %s | %s |\n", g.text, bound, g.limit, g.unit, number(v), g.unit, verdict)
	}
}
