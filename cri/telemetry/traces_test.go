package telemetry

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"crisp/runtime/span"
	"crisp/test/testkit/collector"
)

const method = "/runtime.v1.RuntimeService/RunPodSandbox"

// call makes a call through the interceptor, in a trace of the client's if parent is not
// empty.
func call(t *testing.T, tr *Traces, parent string, handler func(context.Context) error) error {
	t.Helper()
	ctx := t.Context()
	if parent != "" {
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("traceparent", parent))
	}
	_, err := tr.Unary()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(ctx context.Context, _ any) (any, error) {
		return nil, handler(ctx)
	})
	return err
}

// Contexts of a client's trace.
const (
	traceID  = "0af7651916cd43dd8448eb211c80319c"
	parentID = "b7ad6b7169203331"
	sampled  = "00-" + traceID + "-" + parentID + "-01"
	ignored  = "00-" + traceID + "-" + parentID + "-00"
)

// newTraces returns traces that are sent to an endpoint.
func newTraces(t *testing.T, o TraceOptions) *Traces {
	t.Helper()
	tr := NewTraces("1.2.3")
	if err := tr.Set(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return tr
}

// finish closes traces, which sends everything.
func finish(t *testing.T, tr *Traces) {
	t.Helper()
	if err := tr.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestTraces expects a call's span below its client's, and the parts of the call below
// that one.
func TestTraces(t *testing.T) {
	c := collector.Start(t)
	tr := newTraces(t, TraceOptions{Endpoint: c.Address})
	err := call(t, tr, sampled, func(ctx context.Context) error {
		if env := span.Environment(ctx); len(env) != 1 || !strings.HasPrefix(env[0], "TRACEPARENT=00-"+traceID) {
			t.Errorf("a program would get %q", env)
		}
		_ = span.Do(ctx, "outer", func(ctx context.Context) error {
			_, end := span.Start(ctx, "inner", "plugin", "bri\xffdge")
			end(errors.New(strings.Repeat("x", 5000)))
			span.Note(ctx, "something happened")
			return nil
		})
		return status.Error(codes.NotFound, "no such pod")
	})
	if status.Code(err) != codes.NotFound {
		t.Errorf("the call's error is %v", err)
	}
	finish(t, tr)

	byName := map[string]collector.Span{}
	for _, s := range c.Spans() {
		byName[s.Name] = s
		if s.Trace != traceID {
			t.Errorf("span %q is in trace %s", s.Name, s.Trace)
		}
	}
	top, outer, inner := byName[method[1:]], byName["outer"], byName["inner"]
	if len(byName) != 3 || top.Parent != parentID || outer.Parent != top.ID || inner.Parent != outer.ID {
		t.Errorf("spans %+v", byName)
	}
	if !strings.Contains(top.Failed, "no such pod") || outer.Failed != "" || len(inner.Failed) < 1000 || len(inner.Failed) > 1100 {
		t.Errorf("they failed with %q, %q and %d bytes", top.Failed, outer.Failed, len(inner.Failed))
	}
	if inner.Labels["plugin"] != `bri\xffdge` || top.Labels["rpc.method"] != method[1:] || len(outer.Events) != 1 {
		t.Errorf("labels %v and %v, events %v", inner.Labels, top.Labels, outer.Events)
	}
	if r := c.Resource(); r["service.name"] != "crisp" || r["service.version"] != "1.2.3" || r["host.name"] == "" {
		t.Errorf("the sender calls itself %v", r)
	}
}

// TestSampling lets the client decide where it has a trace, and the rate elsewhere.
func TestSampling(t *testing.T) {
	for _, tt := range []struct {
		parent string
		rate   int
		want   int
	}{
		{sampled, 0, 20}, {ignored, million, 0}, {"", 0, 0}, {"", million, 20}, {"00-nonsense", million, 20}, {"00-nonsense", 0, 0},
	} {
		c := collector.Start(t)
		tr := newTraces(t, TraceOptions{Endpoint: c.Address, PerMillion: tt.rate})
		for range 20 {
			if err := call(t, tr, tt.parent, func(context.Context) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}

		finish(t, tr)
		if got := len(c.Spans()); got != tt.want {
			t.Errorf("with parent %q and rate %d there are %d spans, want %d", tt.parent, tt.rate, got, tt.want)
		}
	}
}

// TestOffCostsNothing allocates nothing where nothing is traced.
func TestOffCostsNothing(t *testing.T) {
	tr := NewTraces("1")
	unary, info := tr.Unary(), &grpc.UnaryServerInfo{FullMethod: method}
	handler := func(context.Context, any) (any, error) { return nil, nil }
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() { _, _ = unary(ctx, nil, info, handler) }); n != 0 {
		t.Errorf("a call allocates %v times", n)
	}
	n := testing.AllocsPerRun(100, func() {
		_, end := span.Start(ctx, "part", "name", "value")
		end(nil)
		span.Note(ctx, "event")
		_ = span.Follow(ctx, ctx)
	})
	if n != 0 || span.Environment(ctx) != nil {
		t.Errorf("a part allocates %v times", n)
	}
}

// TestUnreachable neither waits for a collector that does not answer, nor keeps more
// than so many spans for it.
func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()

	for name, endpoint := range map[string]string{"nobody listens": nobody, "it never answers": collector.StartStuck(t).Address} {
		t.Run(name, func(t *testing.T) {
			tr := newTraces(t, TraceOptions{Endpoint: endpoint})
			heap := func() uint64 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapAlloc
			}
			before, began := heap(), time.Now()
			const calls = 50_000
			for range calls {
				if err := call(t, tr, sampled, func(context.Context) error { return nil }); err != nil {
					t.Fatal(err)
				}
			}
			took, after := time.Since(began), heap()
			if took/calls > 200*time.Microsecond {
				t.Errorf("%d calls took %v", calls, took)
			}
			if after > before && after-before > 8<<20 {
				t.Errorf("%d calls keep %d bytes", calls, after-before)
			}

			began = time.Now()
			_ = tr.Close(t.Context()) // either all is known to be lost, or time is up
			if took := time.Since(began); took > flushTime+time.Second {
				t.Errorf("the end takes %v", took)
			}
		})
	}
}

// TestSet changes the collector while calls are traced, and turns tracing off.
func TestSet(t *testing.T) {
	first, second := collector.Start(t), collector.Start(t)
	tr := newTraces(t, TraceOptions{Endpoint: first.Address})
	done := func() error { return call(t, tr, sampled, func(context.Context) error { return nil }) }
	for _, o := range []TraceOptions{{Endpoint: "http://" + second.Address}, {}} {
		if err := errors.Join(done(), tr.Set(t.Context(), o)); err != nil {
			t.Fatal(err)
		}
	}
	if err := done(); err != nil {
		t.Fatal(err)
	}
	if a, b := len(first.Spans()), len(second.Spans()); a != 1 || b != 1 {
		t.Errorf("the collectors got %d and %d spans, want one each", a, b)
	}
	finish(t, tr)
}

// TestSetWithoutCollector turns tracing off because the collector does not answer. That
// spans are lost is not a reason to keep it.
func TestSetWithoutCollector(t *testing.T) {
	tr := newTraces(t, TraceOptions{Endpoint: collector.StartStuck(t).Address})
	done := func() error { return call(t, tr, sampled, func(context.Context) error { return nil }) }
	if err := errors.Join(done(), tr.Set(t.Context(), TraceOptions{})); err != nil {
		t.Error(err)
	}
	if tr.current.Load() != nil {
		t.Error("calls are still traced")
	}
}

// TestPatience logs a collector that fails once a minute.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{SpanExporter: failing{}}
		spans := make([]sdk.ReadOnlySpan, 3)
		for i, want := range []int{0, 3, 6, 0} {
			if err := p.ExportSpans(t.Context(), spans); err != nil {
				t.Error(err)
			}
			if p.lost != want {
				t.Errorf("after %d failures %d spans are lost and not logged, want %d", i+1, p.lost, want)
			}
			time.Sleep(complainEvery / 3)
		}
	})
}

// failing is an exporter that fails.
type failing struct{ sdk.SpanExporter }

func (failing) ExportSpans(context.Context, []sdk.ReadOnlySpan) error { return errors.New("no") }
