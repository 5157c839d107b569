package budget_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"crisp/image/budget"
)

func TestShares(t *testing.T) {
	b := budget.New()
	for range budget.Streams {
		if _, ok := b.TryStream(); !ok {
			t.Fatal("a stream is missing")
		}
	}

	if _, ok := b.TryStream(); ok {
		t.Error("one stream too many")
	}

	// Streams that never end hold up nobody else.
	release, err := b.Unpack(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}

	all, err := b.Work(t.Context(), 1<<60)
	if err != nil {
		t.Fatal(err)
	}

	gone := errors.New("gone")
	for name, wait := range map[string]func(context.Context) (func(), error){
		"unpack": func(ctx context.Context) (func(), error) { return b.Unpack(ctx, false) },
		"work":   func(ctx context.Context) (func(), error) { return b.Work(ctx, 1) },
	} {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, gone)
		if _, err := wait(ctx); !errors.Is(err, gone) {
			t.Errorf("%s: %v, want the cause of the end", name, err)
		}
		cancel()
	}
	release()
	all()

	if _, err := b.Unpack(t.Context(), false); err != nil {
		t.Error(err)
	}
	if _, err := b.Work(t.Context(), 1); err != nil {
		t.Error(err)
	}
}
