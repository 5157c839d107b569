package main

import (
	"context"
	"errors"
	"sync"
	"time"
)

// podsEach is how many pods each of several clients starts.
const podsEach = 2

// Names of the rates of several clients, in operations per second.
const (
	started  = "pods started"
	executed = "commands run"
	streamed = "commands run by streaming"
	removed  = "pods removed"
)

// crowds are the numbers of concurrent clients.
var crowds = [...]int{8, 32}

// clients makes several clients start pods, use them and remove them concurrently.
// Each of these stages begins when all clients have finished the one before.
func (b *bench) clients(ctx context.Context, t *target, round int) error {
	for _, n := range crowds {
		c := b.client(t, b.recorder("clients", t.name, round, n))
		names := b.names(n * podsEach)
		pods := make([]*pod, len(names))
		err := b.crowd(started, t.name, round, n, func(i int) (err error) {
			pods[i], err = c.start(ctx, names[i])
			return err
		})

		if err == nil {
			err = together(n, len(pods), func(i int) error { return c.awaitTrap(ctx, pods[i]) })
		}
		if err == nil {
			err = b.crowd(executed, t.name, round, n, func(i int) error { return c.execSync(ctx, pods[i]) })
		}
		if err == nil {
			err = b.crowd(streamed, t.name, round, n, func(i int) error { return c.execStream(ctx, pods[i]) })
		}

		err = errors.Join(err, b.crowd(removed, t.name, round, n, func(i int) error {
			if pods[i] == nil {
				return nil
			}
			return c.remove(context.WithoutCancel(ctx), pods[i])
		}))
		if err != nil {
			return err
		}
	}
	return nil
}

// clientsFloor makes as many clients attach and detach network namespaces.
func (b *bench) clientsFloor(ctx context.Context, round int) error {
	for _, n := range crowds {
		for _, p := range []*plugins{b.plugins, b.ownPlugins} {
			if err := b.crowdAlone(ctx, p, round, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// crowdAlone is clientsFloor for one network and number of clients.
func (b *bench) crowdAlone(ctx context.Context, p *plugins, round, n int) error {
	record := b.recorder("clients", p.name, round, n)
	detach := make([]func() error, n*podsEach)
	err := b.crowd(started, p.name, round, n, func(i int) (err error) {
		detach[i], err = p.attach(ctx, record)
		return err
	})

	return errors.Join(err, b.crowd(removed, p.name, round, n, func(i int) error {
		if detach[i] == nil {
			return nil
		}
		return detach[i]()
	}))
}

func (b *bench) names(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = b.name()
	}
	return names
}

// crowd makes n clients share n*podsEach operations, and adds their rate as a
// sample.
func (b *bench) crowd(what, runtime string, round, n int, do func(i int) error) error {
	total := n * podsEach
	began := time.Now()
	if err := together(n, total, do); err != nil {
		return err
	}
	rate := float64(total) / time.Since(began).Seconds()
	b.samples.add(Sample{"clients", runtime, round, n, what, rate, "1/s"})
	return nil
}

// together performs total operations, n at a time.
func together(n, total int, do func(i int) error) error {
	next := make(chan int, total)
	for i := range total {
		next <- i
	}
	close(next)

	errs := make([]error, n)
	var wg sync.WaitGroup
	for worker := range n {
		wg.Go(func() {
			for i := range next {
				errs[worker] = errors.Join(errs[worker], do(i))
			}
		})
	}
	wg.Wait()

	return errors.Join(errs...)
}
