package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	executors = 8   // clients that run commands
	warmUp    = 200 // commands before memory is measured
)

// Names of samples of the phase execs.
const (
	sizeBefore, sizeHalf, sizeAfter = "PSS before", "PSS at half of the commands", "PSS after"
	sizeGrowth                      = "growth of the PSS"
)

// execs measures whether a runtime's memory stays flat over many commands.
func (b *bench) execs(ctx context.Context, t *target, round int) (err error) {
	if len(t.programs) == 0 {
		b.note("execs", "The programs of a runtime that the benchmark did not start are unknown.")
		return nil
	}

	c := b.client(t, func(string, time.Duration) {})
	p, err := c.start(ctx, b.name())
	defer func() { err = errors.Join(err, c.remove(context.WithoutCancel(ctx), p)) }()
	if err == nil {
		err = c.awaitTrap(ctx, p)
	}
	if err != nil {
		return err
	}

	add := func(name string, value float64, unit string) {
		b.samples.add(Sample{"execs", t.name, round, 0, name, value, unit})
	}
	weigh := func(name string) (float64, error) {
		time.Sleep(time.Second) // for processes that are about to exit
		pss, err := b.memory(ctx, t)
		sum := 0.0
		for _, kib := range pss {
			sum += float64(kib)
		}
		add(name, sum, "KiB")
		return sum, err
	}

	if _, err := b.runCommands(ctx, c, p, warmUp, callTime); err != nil {
		return err
	}
	before, err := weigh(sizeBefore)
	if err != nil {
		return err
	}

	began, done := time.Now(), 0
	after := before
	for _, name := range []string{sizeHalf, sizeAfter} {
		n, err := b.runCommands(ctx, c, p, b.opt.execs/2, b.opt.execTime/2)
		if err != nil {
			return err
		}
		done += n
		if after, err = weigh(name); err != nil {
			return err
		}
	}

	add("commands", float64(done), "commands")
	add(executed, float64(done)/(time.Since(began)-2*time.Second).Seconds(), "1/s")
	add(sizeGrowth, (after/before-1)*100, "%")
	if done < b.opt.execs/2*2 {
		b.note("execs", fmt.Sprintf("%s ran fewer than %d commands within the limit of %v.", t.name, b.opt.execs, b.opt.execTime))
	}

	return nil
}

// runCommands runs n commands, or fewer if the limit is reached.
func (b *bench) runCommands(ctx context.Context, c *client, p *pod, n int, limit time.Duration) (int, error) {
	end := time.Now().Add(limit)
	var done atomic.Int64
	err := together(executors, n, func(int) error {
		if time.Now().After(end) || ctx.Err() != nil {
			return ctx.Err()
		}
		done.Add(1)
		return c.execute(ctx, p, "true")
	})
	return int(done.Load()), err
}
