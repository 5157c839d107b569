package telemetry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"k8s.io/klog/v2"

	"crisp/runtime/span"
)

const (
	// maxSpans is how many ended spans wait to be sent; more are dropped. maxSent is
	// how many are sent at a time.
	maxSpans, maxSent = 1024, 256
	// sendEvery is how long an ended span waits at most for others to be sent with,
	// sendTime how long sending may take.
	sendEvery, sendTime = 5 * time.Second, 10 * time.Second
	// flushTime bounds the end of an export: what cannot be sent by then is lost.
	flushTime = 2 * time.Second
	// Bounds of a span: attributes, events, and the length of a text in bytes.
	maxAttributes, maxSpanEvents, maxSpanText = 16, 16, 1 << 10
	// complainEvery is how often a collector that fails is logged.
	complainEvery = time.Minute
	million       = 1_000_000
)

// TraceOptions say where spans go. Their zero value is nowhere.
type TraceOptions struct {
	// Endpoint is the collector: HOST:PORT or http://HOST:PORT without, and
	// https://HOST:PORT with TLS.
	Endpoint string
	// PerMillion is how many in a million calls that belong to no trace of the
	// caller's begin one. For others the caller has decided.
	PerMillion int
}

// Traces has a span of each call that is sampled, and sends it, with those of the
// call's parts, to a collector over OTLP. It is off until [Traces.Set], and then costs
// one look at a pointer per call.
type Traces struct {
	version string
	mu      sync.Mutex // held while the target is changed
	current atomic.Pointer[export]
}

// export is a target.
type export struct {
	options  TraceOptions
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// NewTraces returns the traces of a daemon of a version.
func NewTraces(version string) *Traces { return &Traces{version: version} }

// Set sends the spans that end from now on to another collector, or nowhere. Those that
// the former one has not received are sent, in a bounded time. It does not wait for the
// new collector: whether that is there shows only in the log, as it does of the former
// one.
func (t *Traces) Set(ctx context.Context, o TraceOptions) error {
	old, err := t.replace(ctx, o)
	if err != nil {
		return err
	}
	if err := old.close(ctx); err != nil {
		klog.ErrorS(err, "Could not send the last spans, they are lost")
	}
	return nil
}

// Close sends what is left, in a bounded time, and ends.
func (t *Traces) Close(ctx context.Context) error {
	old, err := t.replace(ctx, TraceOptions{})
	return errors.Join(err, old.close(ctx))
}

// replace makes a target the present one, and returns the former one: nil without one, or
// without a change.
func (t *Traces) replace(ctx context.Context, o TraceOptions) (*export, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.current.Load()
	if o.Endpoint == "" && old == nil || old != nil && old.options == o {
		return nil, nil
	}

	var next *export
	if o.Endpoint != "" {
		var err error
		if next, err = newExport(ctx, t.version, o); err != nil {
			return nil, fmt.Errorf("trace calls to %s: %w", o.Endpoint, err)
		}
	}
	t.current.Store(next)
	return old, nil
}

func newExport(ctx context.Context, version string, o TraceOptions) (*export, error) {
	to := []otlptracegrpc.Option{otlptracegrpc.WithTimeout(sendTime)}
	if strings.Contains(o.Endpoint, "://") {
		to = append(to, otlptracegrpc.WithEndpointURL(o.Endpoint))
	} else {
		to = append(to, otlptracegrpc.WithEndpoint(o.Endpoint), otlptracegrpc.WithInsecure())
	}
	exporter, err := otlptracegrpc.New(ctx, to...)
	if err != nil {
		return nil, err
	}

	host, err := os.Hostname()
	if err != nil {
		return nil, errors.Join(err, exporter.Shutdown(ctx))
	}
	about, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", "crisp"), attribute.String("service.version", version), attribute.String("host.name", host),
	), resource.WithFromEnv())
	if err != nil {
		return nil, errors.Join(err, exporter.Shutdown(ctx))
	}

	limits := sdk.NewSpanLimits()
	limits.AttributeCountLimit, limits.EventCountLimit, limits.AttributeValueLengthLimit = maxAttributes, maxSpanEvents, maxSpanText
	share := float64(o.PerMillion) / million
	provider := sdk.NewTracerProvider(
		sdk.WithBatcher(&patient{SpanExporter: exporter, endpoint: o.Endpoint},
			sdk.WithMaxQueueSize(maxSpans), sdk.WithMaxExportBatchSize(maxSent), sdk.WithBatchTimeout(sendEvery), sdk.WithExportTimeout(sendTime)),
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(share))), sdk.WithRawSpanLimits(limits), sdk.WithResource(about),
	)
	return &export{options: o, provider: provider, tracer: provider.Tracer("crisp", trace.WithInstrumentationVersion(version))}, nil
}

// close sends what is left and ends.
func (e *export) close(ctx context.Context) error {
	if e == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	if err := e.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("send the last spans to %s: %w", e.options.Endpoint, err)
	}
	return nil
}

// patient is an exporter whose failures are logged now and then. The SDK would print
// each to standard error.
type patient struct {
	sdk.SpanExporter
	endpoint string
	lost     int // since the last line in the log
	said     time.Time
}

// ExportSpans sends spans. It is not called concurrently.
func (p *patient) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := p.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	p.lost += len(spans)
	if now := time.Now(); now.Sub(p.said) >= complainEvery {
		klog.InfoS("Could not send spans, they are lost", "collector", p.endpoint, "spans", p.lost, "err", err)
		p.lost, p.said = 0, now
	}
	return nil
}

// Unary traces unary calls.
func (t *Traces) Unary() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		e := t.current.Load()
		if e == nil {
			return handler(ctx, req)
		}
		ctx, s := e.begin(ctx, info.FullMethod)
		resp, err := handler(ctx, req)
		span.End(s, err)
		return resp, err
	}
}

// Stream traces streaming calls.
func (t *Traces) Stream() grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		e := t.current.Load()
		if e == nil {
			return handler(srv, ss)
		}
		ctx, s := e.begin(ss.Context(), info.FullMethod)
		err := handler(srv, &tracedStream{ss, ctx})
		span.End(s, err)
		return err
	}
}

// tracedStream is a stream whose context has its span.
type tracedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *tracedStream) Context() context.Context { return s.ctx }

// begin starts the span of a call, in the trace of its client, if that has one.
func (e *export) begin(ctx context.Context, method string) (context.Context, trace.Span) {
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = propagation.TraceContext{}.Extract(ctx, carrier(md))
	}
	name := strings.TrimPrefix(method, "/")
	return e.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("rpc.system.name", "grpc"), attribute.String("rpc.method", name)))
}

// carrier reads the context of a trace from the metadata of a call.
type carrier metadata.MD

// Get implements propagation.TextMapCarrier.
func (c carrier) Get(key string) string {
	if v := metadata.MD(c).Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

// Keys implements propagation.TextMapCarrier.
func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}
