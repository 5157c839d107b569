package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
)

// alone is the runtime name of the samples of CNI plugins without a runtime, ownAlone
// of those of crisp's own network.
const (
	alone    = "CNI plugins alone"
	ownAlone = "own network alone"
)

// bench measures its targets alternately.
type bench struct {
	opt          options
	targets      []*target
	plugins      *plugins // nil if they cannot be measured
	ownPlugins   *plugins // of the own network
	cgroupParent string
	cgroups      *podCgroups  // nil for a runtime that was running before
	dir          string       // of the runtimes' data
	pulls        *pullImages  // nil without images to pull
	stuck        *stuckPlugin // nil if no pod can be made to hang
	samples      samples
	failed       []string            // errors, for the report
	notes        map[string][]string // by phase: what was not measured, with the reason
	loads        []float64
	pods         int // created so far, for names
}

// phase is a part of the benchmark.
type phase struct {
	name string
	// share is the share of the rounds that include it, rounded up.
	share float64
	// network says that the network matters, so that crisp is measured with its own
	// one, too.
	network bool
	// each measures one target; once measures something without a target, such as
	// the floor for all of them.
	each func(b *bench, ctx context.Context, t *target, round int) error
	once func(b *bench, ctx context.Context, round int) error
	// optional phases run only if they are asked for by name.
	optional bool
}

// phases returns the parts in their order.
func phases() []phase {
	return []phase{
		{name: "serial", share: 1, network: true, each: (*bench).serial, once: (*bench).serialFloor},
		{name: bundlePhase, share: 0.5, once: (*bench).bundle},
		{name: checkpointPhase, share: 1, once: (*bench).checkpoints},
		{name: "clients", share: 0.34, network: true, each: (*bench).clients, once: (*bench).clientsFloor},
		{name: telemetryPhase, share: 1, once: (*bench).telemetry},
		{name: "growth", share: 0.34, each: (*bench).growth},
		{name: "pull", share: 0.34, each: (*bench).pull},
		{name: "logs", share: 0.5, each: (*bench).logs},
		{name: "execs", share: 0.01, each: (*bench).execs},
		{name: "critest", share: 0.16, each: (*bench).critest},
		{name: "scale", share: 0.01, each: (*bench).scale, optional: true},
	}
}

// phaseNames returns the phases that run unless others are asked for.
func phaseNames() []string {
	var names []string
	for _, p := range phases() {
		if !p.optional {
			names = append(names, p.name)
		}
	}
	return names
}

// rounds is how often a phase is measured.
func (b *bench) rounds(name string) int {
	for _, p := range phases() {
		if p.name == name {
			return int(math.Ceil(float64(b.opt.rounds)*p.share - 1e-9))
		}
	}
	return 0
}

// note records what is missing in the results of a phase, with the reason.
func (b *bench) note(phase, text string) {
	if b.notes == nil {
		b.notes = map[string][]string{}
	}
	if !slices.Contains(b.notes[phase], text) {
		b.notes[phase] = append(b.notes[phase], text)
	}
}

// run alternates between the targets in each round, so that a change of the
// machine's speed affects all of them. Failures are kept for the report, and the
// remaining measurements continue.
func (b *bench) run(ctx context.Context) error {
	image := &runtimeapi.ImageSpec{Image: b.opt.image}
	for _, t := range b.targets {
		if err := t.describe(ctx); err != nil {
			return err
		}
		if _, err := t.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: image}); err != nil {
			return fmt.Errorf("%s: pull %s: %w", t.name, b.opt.image, err)
		}

		c := b.client(t, func(string, time.Duration) {})
		for range 3 { // to warm up
			if err := b.live(ctx, c); err != nil {
				return err
			}
		}
	}

	var errs []error
	for _, p := range phases() {
		if !strings.Contains(","+b.opt.phases+",", ","+p.name+",") {
			continue
		}
		for round := range b.rounds(p.name) {
			errs = append(errs, b.round(ctx, p, round))
			if ctx.Err() != nil {
				return errors.Join(append(errs, ctx.Err())...)
			}
		}
	}

	return errors.Join(errs...)
}

// round runs a phase once on every target, in reverse in every second round.
func (b *bench) round(ctx context.Context, p phase, round int) error {
	began := time.Now()
	var errs []error
	failed := func(err error) {
		err = fmt.Errorf("%s, round %d: %w", p.name, round+1, brief(err))
		b.failed = append(b.failed, err.Error())
		errs = append(errs, err)
	}

	for i := range b.targets {
		if p.each == nil {
			break
		}
		if round%2 == 1 {
			i = len(b.targets) - 1 - i
		}

		t := b.targets[i]
		if t.name == oursOwn && !p.network {
			continue
		}
		if err := p.each(b, ctx, t, round); err != nil {
			failed(err)
		}
	}

	if p.once != nil && b.plugins != nil {
		if err := p.once(b, ctx, round); err != nil {
			failed(err)
		}
	}

	inventory.Descendants(os.Getpid()) // reaps processes that were reparented to this one
	load := loadAverage()
	b.loads = append(b.loads, load)
	fmt.Printf("%-8s round %d of %d: %4.1f s, load %.1f\n", p.name, round+1, b.rounds(p.name), time.Since(began).Seconds(), load)
	return errors.Join(errs...)
}

// brief shortens joined errors, which are mostly the same, to the first one.
func brief(err error) error {
	first, others, _ := strings.Cut(err.Error(), "\n")
	if others == "" {
		return err
	}
	return fmt.Errorf("%s (and %d more)", first, 1+strings.Count(others, "\n"))
}

// loadAverage returns the load average of the last minute.
func loadAverage() (load float64) {
	data, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, _ = fmt.Sscan(string(data), &load) // 0 if it has another format
	}
	return load
}

// client makes a client of a target.
func (b *bench) client(t *target, record func(string, time.Duration)) *client {
	return &client{target: t, image: b.opt.image, cgroups: b.cgroups, record: record}
}

// recorder returns a function that adds times as samples of a phase.
func (b *bench) recorder(phase, runtime string, round, load int) func(string, time.Duration) {
	return func(call string, took time.Duration) {
		b.samples.add(Sample{phase, runtime, round, load, call, milliseconds(took), "ms"})
	}
}

// name returns a name for a new pod.
func (b *bench) name() string {
	b.pods++
	return fmt.Sprintf("bench-%d", b.pods)
}

// live runs a pod through all calls of its life.
func (b *bench) live(ctx context.Context, c *client) error {
	p, err := c.start(ctx, b.name())
	if err == nil {
		err = errors.Join(c.awaitTrap(ctx, p), c.execSync(ctx, p), c.execStream(ctx, p))
	}
	return errors.Join(err, c.remove(context.WithoutCancel(ctx), p))
}

// serial measures the calls of pods, one after the other.
func (b *bench) serial(ctx context.Context, t *target, round int) error {
	c := b.client(t, b.recorder("serial", t.name, round, 0))
	for range b.opt.samples {
		if err := b.live(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) serialFloor(ctx context.Context, round int) error {
	for range b.opt.samples {
		for _, p := range []*plugins{b.plugins, b.ownPlugins} {
			detach, err := p.attach(ctx, b.recorder("serial", p.name, round, 0))
			if err != nil {
				return err
			}
			if err := detach(); err != nil {
				return err
			}
		}
	}
	return nil
}
