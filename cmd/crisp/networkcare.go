package main

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"crisp/cri/config"
	"crisp/network"
	"crisp/network/own"
)

// careFor collects what belongs to no pod, at once and then again and again, and checks
// the network, as far as that is configured, until ctx ends.
func careFor(ctx context.Context, n careNetwork, cfg *config.Config) {
	c := &care{network: n, sole: cfg.NetworkSoleRuntime, told: map[own.Finding]bool{}}
	collect, check := time.Duration(cfg.NetworkGCInterval), time.Duration(cfg.NetworkCheckInterval)
	if collect > 0 {
		c.collect(ctx)
	}

	collections, checks := ticks(collect), ticks(check)
	defer collections.Stop()
	defer checks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-collections.C:
			c.collect(ctx)
		case <-checks.C:
			c.check(ctx)
		}
	}
}

// ticks returns a ticker, one that never ticks for 0.
func ticks(every time.Duration) *time.Ticker {
	if every > 0 {
		return time.NewTicker(every)
	}
	t := time.NewTicker(time.Hour)
	t.Stop()
	return t
}

// careNetwork is what the care needs of a network.
type careNetwork interface {
	Collect(ctx context.Context, sole bool) ([]own.Finding, error)
	Check(ctx context.Context, how network.Check) ([]own.Finding, error)
}

// care is the care for a network.
type care struct {
	network careNetwork
	sole    bool
	// told are the findings of the last time, which are not logged again.
	told map[own.Finding]bool
}

func (c *care) collect(ctx context.Context) {
	found, err := c.network.Collect(ctx, c.sole)
	if err != nil && ctx.Err() == nil {
		klog.ErrorS(err, "Could not remove everything of the network that belongs to no pod, it is tried again")
	}
	// What may belong to another runtime is for those who ask.
	for _, f := range found {
		if f.Repaired {
			klog.InfoS("Removed what belonged to no pod", "about", f.About, "what", f.Text)
		}
	}
}

func (c *care) check(ctx context.Context) {
	found, err := c.network.Check(ctx, network.Check{Repair: true, Sole: c.sole})
	if err != nil {
		if ctx.Err() == nil {
			klog.ErrorS(err, "Could not check the network")
		}
		return
	}

	now := map[own.Finding]bool{}
	for _, f := range found {
		if f.Level == own.LevelOK {
			continue
		}
		now[f] = true
		switch {
		case f.Repaired:
			klog.InfoS("Repaired the network", "about", f.About, "what", f.Text)
		case c.told[f]:
		case f.Level == own.LevelFail:
			klog.ErrorS(nil, "The network has a failure", "about", f.About, "what", f.Text, "advice", f.Advice)
		default:
			klog.InfoS("The network may have a failure", "about", f.About, "what", f.Text, "advice", f.Advice)
		}
	}
	c.told = now
}
