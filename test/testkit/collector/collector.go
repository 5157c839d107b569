// Package collector is a collector of OpenTelemetry traces for tests: a server of the
// OTLP protocol that keeps what it gets.
package collector

import (
	"context"
	"encoding/hex"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	traces "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// Span is one that was received. IDs are hexadecimal.
type Span struct {
	Trace, ID, Parent string
	Name              string
	// Failed is the error that the span ended with, "" for none.
	Failed string
	Events []string
	Labels map[string]string
	Took   time.Duration
}

// Collector keeps spans.
type Collector struct {
	collector.UnimplementedTraceServiceServer

	// Address is HOST:PORT.
	Address string
	server  *grpc.Server
	done    chan struct{} // closed when nothing is served any more
	// hold, if not nil, is what each request waits for.
	hold chan struct{}

	mu       sync.Mutex
	spans    []Span            // guarded by mu
	resource map[string]string // guarded by mu
	requests int               // guarded by mu
}

// Serve serves a collector until it is closed.
func Serve() (*Collector, error) { return serve(nil) }

// Start serves a collector until the test ends.
func Start(t testing.TB) *Collector { return start(t, nil) }

// StartStuck serves a collector that takes requests and answers none.
func StartStuck(t testing.TB) *Collector { return start(t, make(chan struct{})) }

func start(t testing.TB, hold chan struct{}) *Collector {
	t.Helper()
	c, err := serve(hold)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func serve(hold chan struct{}) (*Collector, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Collector{Address: l.Addr().String(), server: grpc.NewServer(), hold: hold, done: make(chan struct{})}
	collector.RegisterTraceServiceServer(c.server, c)
	go func() { defer close(c.done); _ = c.server.Serve(l) }()
	return c, nil
}

// Close ends it.
func (c *Collector) Close() {
	c.server.Stop()
	<-c.done
}

// Export implements the protocol.
func (c *Collector) Export(ctx context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	c.requests++
	c.mu.Unlock()
	if c.hold != nil {
		select {
		case <-c.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	for _, from := range r.GetResourceSpans() {
		c.resource = labels(from.GetResource().GetAttributes())
		for _, scope := range from.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, spanOf(s))
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func spanOf(s *traces.Span) Span {
	out := Span{
		Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
		Name: s.GetName(), Labels: labels(s.GetAttributes()), Took: time.Duration(s.GetEndTimeUnixNano() - s.GetStartTimeUnixNano()),
	}
	if s.GetStatus().GetCode() == traces.Status_STATUS_CODE_ERROR {
		out.Failed = s.GetStatus().GetMessage()
	}
	for _, e := range s.GetEvents() {
		out.Events = append(out.Events, e.GetName())
	}
	return out
}

func labels(list []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range list {
		out[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
	return out
}

// Spans are those received so far, in any order.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Resource is what the last sender said of itself.
func (c *Collector) Resource() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.resource
}

// Requests is how often spans were sent.
func (c *Collector) Requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests
}
