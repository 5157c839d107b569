// Package span marks the parts of an operation for its trace: the steps of a table,
// calls of plugins, requests to the keeper, stages of a pull.
//
// It knows the API of OpenTelemetry, not its SDK: the trace comes in with the context
// of a call, and so does whatever records it. Without a trace, or in one that is not
// sampled, [Start] is one look-up in the context.
package span

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"crisp/runtime/untrusted"
)

const (
	// scope names the instrumentation, as OpenTelemetry has it.
	scope = "crisp"
	// maxText is the length of an attribute or an error, in bytes: both may be as
	// long as whoever caused them likes.
	maxText = 1 << 10
)

// Start begins a part of the operation that ctx belongs to. Labels are names and
// values in turn. The returned context is the part's own, end ends it with its error.
func Start(ctx context.Context, name string, labels ...string) (_ context.Context, end func(error)) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, func(error) {}
	}
	ctx, s := parent.TracerProvider().Tracer(scope).Start(ctx, text(name), trace.WithAttributes(attributes(labels)...))
	return ctx, func(err error) { End(s, err) }
}

// Do runs f as a part of the operation that ctx belongs to.
func Do(ctx context.Context, name string, f func(context.Context) error) error {
	ctx, end := Start(ctx, name)
	err := f(ctx)
	end(err)
	return err
}

// End ends a span, as failed if err is not nil.
func End(s trace.Span, err error) {
	if err != nil {
		s.SetStatus(codes.Error, text(err.Error()))
	}
	s.End()
}

// Note adds an event to the part that ctx belongs to.
func Note(ctx context.Context, what string) {
	if s := trace.SpanFromContext(ctx); s.IsRecording() {
		s.AddEvent(text(what))
	}
}

// Follow returns ctx in the trace of another context: what is done with it belongs to
// that one's operation, and does not end with it.
func Follow(ctx, operation context.Context) context.Context {
	if s := trace.SpanFromContext(operation); s.IsRecording() {
		return trace.ContextWithSpan(ctx, s)
	}
	return ctx
}

// Environment names the part that ctx belongs to for a program that it starts, in the
// environment variables that OpenTelemetry has for that; none without a trace.
func Environment(ctx context.Context) []string {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return nil
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	env := []string{"TRACEPARENT=" + carrier.Get("traceparent")}
	if state := carrier.Get("tracestate"); state != "" {
		env = append(env, "TRACESTATE="+state)
	}
	return env
}

// attributes makes attributes of names and values in turn.
func attributes(labels []string) []attribute.KeyValue {
	list := make([]attribute.KeyValue, 0, len(labels)/2)
	for i := 1; i < len(labels); i += 2 {
		list = append(list, attribute.String(labels[i-1], text(labels[i])))
	}
	return list
}

// text is valid in a message: one that is not would lose all spans sent with it.
func text(s string) string { return untrusted.Of(s).Message(maxText) }
