package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// few and many are the numbers of pods that the phase scale compares.
	few, many = 10, 1000
	// scaleExecs is how many commands it measures at each of them.
	scaleExecs = 100
)

// crowdKind is a kind of pods of which a node has many.
type crowdKind struct {
	phase, title string
	networked    int
	oneCgroup    bool
}

// crowdedKinds returns the kinds in the order in which they are measured.
func crowdedKinds() []crowdKind {
	return []crowdKind{
		{phase: "scale", title: "on the node's network"},
		{phase: "scale, one cgroup", title: "whose cgroups have one parent, on the node's network", oneCgroup: true},
		{phase: "scale, bridge", title: "on a bridge", networked: many},
	}
}

// scale compares few and many pods of each kind on crisp. Its peers are not
// measured: a thousand pods of theirs take minutes longer, and the phase growth
// shows the difference with less.
func (b *bench) scale(ctx context.Context, t *target, round int) error {
	if len(b.targets) > 1 && t.name != ours {
		return nil
	}

	for _, k := range crowdedKinds() {
		if err := b.crowdOf(ctx, t, round, k); err != nil {
			return fmt.Errorf("pods %s: %w", k.title, err)
		}
	}
	return nil
}

// crowdOf measures few and many pods of one kind.
func (b *bench) crowdOf(ctx context.Context, t *target, round int, k crowdKind) (err error) {
	g := &grown{bench: b, t: t, phase: k.phase, round: round, networked: k.networked, oneCgroup: k.oneCgroup}
	defer func() { err = errors.Join(err, g.shrink(context.WithoutCancel(ctx))) }()

	for _, size := range []int{0, few, many} {
		began := time.Now()
		if err := g.growTo(ctx, size); err != nil {
			return fmt.Errorf("start %d pods: %w", size, err)
		}
		if size > 0 {
			g.add("starting them, s", time.Since(began).Seconds(), "s")
		}

		if err := g.strain(ctx); err != nil {
			return fmt.Errorf("%d pods: %w", size, err)
		}
	}
	return nil
}

// strain measures what must not grow with the number of pods, and what may only
// grow linearly with it.
func (g *grown) strain(ctx context.Context) error {
	if len(g.pods) == 0 { // start with a fresh daemon, and the kernel's memory without pods
		return errors.Join(g.restart(ctx), g.weigh(ctx))
	}

	if err := g.questions(ctx, "", 0); err != nil {
		return err
	}
	c := g.recording()
	for i := range scaleExecs {
		if err := c.execSync(ctx, g.pods[i%len(g.pods)]); err != nil {
			return err
		}
	}

	if err := g.weigh(ctx); err != nil {
		return err
	}
	if err := g.idle(ctx); err != nil {
		return err
	}
	return g.restart(ctx)
}

// scaleSections prints the phase for each kind of pods.
func (b *bench) scaleSections(w *bytes.Buffer) {
	for _, k := range crowdedKinds() {
		var keys []key
		for _, load := range []int{few, many} {
			for _, key := range b.ofLoad(k.phase, load) {
				key.load = 0
				if !slices.Contains(keys, key) {
					keys = append(keys, key)
				}
			}
		}

		if len(keys) > 0 {
			b.crowdTable(w, k, keys)
		}
	}
}

// crowdTable prints a row for each key, whose load is ignored.
func (b *bench) crowdTable(w *bytes.Buffer, k crowdKind, keys []key) {
	fmt.Fprintf(w, "\n### %d and %d pods %s\n\nMilliseconds; memory in KiB, as above.\n\n", few, many, k.title)
	fmt.Fprintf(w, "| | %d: p50 | p99 | %d: p50 | p99 | growth of the p50 |\n|---|--:|--:|--:|--:|--:|\n", few, many)
	for _, key := range keys {
		key.load = few
		before := b.samples.of(key, b.targets[0].name)
		key.load = many
		after := b.samples.of(key, b.targets[0].name)
		growth := ""
		if a, z := quantile(before.whole(), 0.5), quantile(after.whole(), 0.5); a > 0 && z > 0 {
			growth = number(z/a) + " ×"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", key.name, cells(before), cells(after), growth)
	}
	b.notesOf(w, k.phase)
}
