package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crisp/network/own"
)

const (
	// collectTimeout bounds how long plugins may collect garbage, since no pod is
	// attached meanwhile.
	collectTimeout = 30 * time.Second
	// quietPatience is how long a moment without an Attach is waited for, and
	// quietInterval how often it is looked for.
	quietPatience = time.Minute
	quietInterval = 100 * time.Millisecond
)

// Collect removes what belongs to no pod. Of crisp's own network that is what certainly
// does not, and it is returned. With sole, no other runtime or daemon has pods in the
// networks: then other plugins are asked to release what no pod has (GC), too.
func (n *Network) Collect(ctx context.Context, sole bool) ([]own.Finding, error) {
	done, err := n.begin()
	if err != nil {
		return nil, fmt.Errorf("collect garbage of network: %w", err)
	}
	defer done()
	found, err := n.collect(ctx, sole)
	if err != nil {
		return found, fmt.Errorf("collect garbage of network: %w", err)
	}
	return found, nil
}

func (n *Network) collect(ctx context.Context, sole bool) ([]own.Finding, error) {
	conf, err := n.config()
	if err != nil {
		conf = nil // what older configurations made is collected all the same
	}
	var found []own.Finding
	var errs []error
	if n.own != nil {
		e, err := examination(n.options, n.client, conf, Check{Sole: sole, Repair: true})
		if err == nil {
			found, err = n.own.Collect(ctx, e)
		}
		errs = append(errs, err)
	}
	if sole && conf != nil {
		errs = append(errs, n.collectByPlugins(ctx))
	}
	return found, errors.Join(errs...)
}

// collectByPlugins has the plugins of the configuration collect garbage, in a moment in
// which no pod is attached.
func (n *Network) collectByPlugins(ctx context.Context) error {
	for end := time.Now().Add(quietPatience); !n.attaching.TryLock(); {
		if time.Now().After(end) {
			return nil // the next time
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(quietInterval):
		}
	}
	defer n.attaching.Unlock()

	ctx, cancel := context.WithTimeout(ctx, collectTimeout)
	defer cancel()
	conf, err := n.config()
	if err != nil {
		return err
	}
	valid, err := n.client.Attached()
	if err != nil {
		return err
	}
	others, err := n.options.cached()
	if err != nil {
		return err
	}
	return n.client.GC(ctx, conf, valid, others[conf.Name()])
}
