package own

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"crisp/network/own/lease"
	"crisp/network/own/link"
	"crisp/network/own/rules"
)

// reapDelay is how long a retired interface waits for others, so that one wait of the
// kernel serves all pods that stop together.
const reapDelay = 100 * time.Millisecond

// Plugin answers calls in one network namespace, that of the node. It is safe for
// concurrent use.
type Plugin struct {
	ns *os.File
	// beside are directories of leases of the node's other networks.
	beside []string

	mu    sync.Mutex
	host  *link.Host
	table *rules.Table

	// leasing admits one goroutine to the leases, which processes lock by a file.
	leasing chan struct{}

	// retired wakes the reaper; done is closed when it has ended. Without a reaper
	// both are nil, and interfaces are deleted before DEL returns.
	retired, done chan struct{}
}

// Call is one call of the plugin.
type Call struct {
	// Type is the plugin type by which it is called: "" or [Type], or one of
	// [ReferenceTypes].
	Type string
	// Command is ADD, DEL, CHECK, STATUS, GC or VERSION.
	Command string
	// ID, NetNS, IfName and Args are CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME and
	// CNI_ARGS.
	ID, NetNS, IfName, Args string
	// Config is the plugin's configuration.
	Config []byte
}

// Open returns the plugin for the network namespace of the calling thread. With
// deferred, DEL leaves the deletion of interfaces to a goroutine that ends with Close.
// beside are directories of leases of the node's other networks, in addition to that of a
// call's configuration: their addresses are not given to pods that would meet theirs.
// Nothing is made, and nothing of the kernel is needed, before the first call.
func Open(deferred bool, beside ...string) (*Plugin, error) {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	p := &Plugin{ns: ns, beside: beside, leasing: make(chan struct{}, 1)}
	if deferred {
		p.retired, p.done = make(chan struct{}, 1), make(chan struct{})
		go p.reap()
	}
	return p, nil
}

// Close ends the reaper, after it has deleted what was retired. No call may be under
// way.
func (p *Plugin) Close() error {
	if p.retired != nil {
		close(p.retired)
		<-p.done
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	if p.host != nil {
		p.host.Close()
	}
	if p.table != nil {
		errs = append(errs, p.table.Close())
	}
	return errors.Join(append(errs, p.ns.Close())...)
}

// reap deletes retired interfaces, some at a time.
func (p *Plugin) reap() {
	defer close(p.done)
	for range p.retired {
		time.Sleep(reapDelay)
		if host, err := p.links(); err == nil {
			// What it could not delete is in its group for the next time.
			_ = host.Reap()
		}
	}
}

// retire has the interfaces that were retired deleted.
func (p *Plugin) retire(host *link.Host) error {
	if p.retired == nil {
		return host.Reap()
	}
	select {
	case p.retired <- struct{}{}:
	default: // the reaper will see these, too
	}
	return nil
}

// links returns the connection to the kernel's interfaces, opened once.
func (p *Plugin) links() (*link.Host, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.host != nil {
		return p.host, nil
	}
	var err error
	p.host, err = link.Open(p.ns)
	return p.host, err
}

// filter returns the connection to the packet filter, opened once.
func (p *Plugin) filter() (*rules.Table, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.table != nil {
		return p.table, nil
	}
	var err error
	p.table, err = rules.Open(p.ns)
	return p.table, err
}

// withLeases runs f with the leases of a network, one goroutine at a time.
func (p *Plugin) withLeases(ctx context.Context, c *conf, f func(*lease.Store) error) error {
	select {
	case p.leasing <- struct{}{}:
		defer func() { <-p.leasing }()
	case <-ctx.Done():
		return fmt.Errorf("wait for leases: %w", context.Cause(ctx))
	}
	store, err := lease.Open(c.IPAM.DataDir, c.Name, p.beside...)
	if err != nil {
		return err
	}
	return f(store)
}

// Call answers a call with what the plugin prints, nothing if that is nothing. Errors
// are [*types.Error].
func (p *Plugin) Call(ctx context.Context, call Call) ([]byte, error) {
	output, err := p.call(ctx, call)
	if err == nil {
		return output, nil
	}
	var coded *types.Error
	if errors.As(err, &coded) {
		return nil, coded
	}
	return nil, types.NewError(code(call.Command, err), err.Error(), "")
}

func (p *Plugin) call(ctx context.Context, call Call) ([]byte, error) {
	switch {
	case call.Command == "VERSION":
	case call.Type == TypePortmap:
		return p.portmap(ctx, call)
	case call.Type == TypeLoopback:
		return p.loopback(call)
	case call.Type == TypeBandwidth:
		return p.bandwidth(call)
	case call.Type == TypeTuning:
		return tuning(call)
	case call.Type == TypeFirewall:
		return p.firewall(ctx, call)
	}

	switch call.Command {
	case "ADD":
		return p.add(ctx, call)
	case "DEL":
		return nil, p.del(ctx, call)
	case "CHECK":
		return nil, p.check(call)
	case "STATUS":
		return nil, p.status(call)
	case "GC":
		return nil, p.gc(ctx, call)
	case "VERSION":
		return json.Marshal(Versions())
	default:
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("unknown command %q", call.Command), "")
	}
}

// code is the specification's code of an error, or one of the plugin's own.
func code(command string, err error) uint {
	const ownErrors = 100
	switch {
	case command == "STATUS":
		return types.ErrPluginNotAvailable
	case errors.Is(err, lease.ErrExhausted):
		return types.ErrTryAgainLater
	case errors.Is(err, lease.ErrTaken), errors.Is(err, lease.ErrOutside):
		return ownErrors
	case errors.Is(err, rules.ErrPortTaken):
		return ownErrors + 1
	case errors.Is(err, link.ErrForeign):
		return ownErrors + 2
	case errors.Is(err, link.ErrUnsupported), errors.Is(err, rules.ErrUnsupported), errors.Is(err, link.ErrNoIPv6):
		return ownErrors + 3
	case errors.Is(err, link.ErrBroken):
		return ownErrors + 4
	default:
		return types.ErrInternal
	}
}

// Validate returns an error if a configuration is not one that ADD would accept.
func Validate(config []byte) error {
	_, err := parse(config)
	return err
}
