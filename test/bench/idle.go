package main

import (
	"context"
	"errors"
	"sync"
	"time"
)

// probesPerSecond is the rate of exec probes over all pods.
const probesPerSecond = 10

// settleTime is how long a runtime may take to finish earlier work.
const settleTime = 3 * time.Second

// idle measures the CPU that a node with pods uses when idle, and with exec probes
// of its pods.
func (g *grown) idle(ctx context.Context) error {
	time.Sleep(settleTime)
	err := g.spend("idle", func() error {
		select {
		case <-time.After(g.opt.window):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if err != nil {
		return err
	}
	return g.spend("10 probes a second", func() error { return g.probe(ctx) })
}

// spend measures the CPU that the runtime and the whole node use during meanwhile.
func (g *grown) spend(what string, meanwhile func() error) error {
	own, err := g.t.cpu()
	if err != nil {
		return err
	}

	all, err := busy()
	if err != nil {
		return err
	}

	began := time.Now()
	if err := meanwhile(); err != nil {
		return err
	}

	took := time.Since(began).Seconds()
	allAfter, err := busy()
	if err != nil {
		return err
	}

	ownAfter, err := g.t.cpu()
	if err != nil {
		return err
	}

	if len(g.t.programs) > 0 {
		g.add("CPU of the runtime, "+what, milliseconds(ownAfter-own)/took, "ms per s")
	}
	g.add("CPU of the node, "+what, milliseconds(allAfter-all)/took, "ms per s")
	return nil
}

// probe runs commands in the pods alternately, at a fixed rate: a slow one does
// not delay the next.
func (g *grown) probe(ctx context.Context) error {
	c := g.recording()
	probes := int(g.opt.window.Seconds() * probesPerSecond)
	errs := make([]error, probes)
	tick := time.NewTicker(time.Second / probesPerSecond)
	defer tick.Stop()

	var wg sync.WaitGroup
	for i := range probes {
		wg.Go(func() {
			errs[i] = c.timed(ctx, "ExecSync of a probe", func(ctx context.Context) error {
				return c.execute(ctx, g.pods[i%len(g.pods)], "true")
			})
		})
		<-tick.C
	}
	wg.Wait()

	return errors.Join(errs...)
}
