package main

import (
	"context"
	"errors"
	"sync"

	"k8s.io/klog/v2"

	"crisp/cri/audit"
	"crisp/cri/config"
	"crisp/cri/telemetry"
)

// newMetrics makes the meter of all services, if there is an address for metrics.
func (d *services) newMetrics() {
	if d.cfg.MetricsAddress != "" {
		d.metrics = telemetry.New(version, metricsSource{d})
	}
}

// startTraces traces calls, if configured, until the daemon closes.
func (d *services) startTraces(ctx context.Context) error {
	d.traces = telemetry.NewTraces(version)
	d.onClose(func() {
		if err := d.traces.Close(context.Background()); err != nil {
			klog.InfoS("Could not send all spans", "reason", err)
		}
	})
	return d.traces.Set(ctx, traceOptions(d.cfg))
}

// startAudit writes the audit log, if configured, until the daemon closes.
func (d *services) startAudit(ctx context.Context) error {
	lost := func(int) {}
	if d.metrics != nil {
		lost = d.metrics.AuditLost
	}
	d.audit = audit.New(ctx, lost)
	d.onClose(d.audit.Close)
	return d.audit.Set(ctx, d.cfg.AuditLog)
}

// traceOptions are those of a configuration.
func traceOptions(cfg *config.Config) telemetry.TraceOptions {
	return telemetry.TraceOptions{Endpoint: cfg.TracingEndpoint, PerMillion: cfg.TracingSamplingRate}
}

// metricsServer answers scrapes at an address that may change.
type metricsServer struct {
	mu      sync.Mutex
	address string // guarded by mu; "" while nothing is served
	stop    func() // guarded by mu
}

// listen answers scrapes at an address, in place of the former one if there is any.
func (s *metricsServer) listen(ctx context.Context, m *telemetry.Metrics, address string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	former := s.address
	if address == former {
		return nil
	}
	s.close() // both may need the same port

	err := s.open(ctx, m, address)
	if err != nil && former != "" {
		err = errors.Join(err, s.open(ctx, m, former))
	}
	return err
}

// open begins to answer. mu is held.
func (s *metricsServer) open(ctx context.Context, m *telemetry.Metrics, address string) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	at, done, err := m.Serve(ctx, address, func(err error) { klog.ErrorS(err, "Stopped serving metrics") })
	if err != nil {
		cancel()
		return err
	}
	s.address, s.stop = address, func() { cancel(); <-done }
	klog.InfoS("Serving metrics", "address", at.String())
	return nil
}

// close stops answering. mu is held.
func (s *metricsServer) close() {
	if s.stop != nil {
		s.stop()
	}
	s.address, s.stop = "", nil
}

// serveMetrics serves metrics, if configured, until the daemon closes.
func (d *services) serveMetrics(ctx context.Context) error {
	if d.metrics == nil {
		return nil
	}
	d.onClose(func() {
		d.scrapes.mu.Lock()
		defer d.scrapes.mu.Unlock()
		d.scrapes.close()
	})
	return d.scrapes.listen(ctx, d.metrics, d.cfg.MetricsAddress)
}

// moveMetrics serves metrics at another address. Whether something is measured at all
// does not change.
func (d *services) moveMetrics(ctx context.Context, address string) error {
	if (d.metrics == nil) != (address == "") {
		return errRestart
	}
	if d.metrics == nil {
		return nil
	}
	return d.scrapes.listen(ctx, d.metrics, address)
}

// metricsSource is the daemon's state for metrics.
type metricsSource struct{ d *services }

// Pods implements telemetry.Source.
func (s metricsSource) Pods() map[string]int {
	states := map[string]int{"ready": 0, "notready": 0}
	if s.d.pods == nil {
		return states
	}
	for _, r := range s.d.pods.Sandboxes() {
		if r.Ready() {
			states["ready"]++
		} else {
			states["notready"]++
		}
	}
	return states
}

// Containers implements telemetry.Source.
func (s metricsSource) Containers() map[string]int {
	states := map[string]int{"created": 0, "running": 0, "exited": 0, "unknown": 0}
	if s.d.pods == nil {
		return states
	}
	for _, r := range s.d.pods.Sandboxes() {
		for _, c := range r.Containers {
			states[c.StateName()]++
		}
	}
	return states
}

// Images implements telemetry.Source.
func (s metricsSource) Images() (count int, bytes uint64) {
	if s.d.images == nil {
		return 0, 0
	}
	list := s.d.images.List()
	for _, i := range list {
		bytes += i.Size
	}
	return len(list), bytes
}
