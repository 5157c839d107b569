package cri

import (
	"bytes"
	"math"
	"testing"
	"time"
)

func TestShare(t *testing.T) {
	for _, c := range []struct{ a, b, wantA, wantB int }{
		{0, 0, 0, 0},
		{3, 4, 3, 4},
		{10, 0, 10, 0},
		{20, 0, 10, 0},
		{0, 20, 0, 10},
		{20, 3, 7, 3},
		{3, 20, 3, 7},
		{20, 20, 5, 5},
		{6, 6, 5, 5},
	} {
		a, b := share(bytes.Repeat([]byte{1}, c.a), bytes.Repeat([]byte{2}, c.b), 10)
		if len(a) != c.wantA || len(b) != c.wantB {
			t.Errorf("%d and %d bytes are cut to %d and %d, want %d and %d", c.a, c.b, len(a), len(b), c.wantA, c.wantB)
		}
	}
}

// TestSeconds: a time too long for a duration is a long one, not a short one.
func TestSeconds(t *testing.T) {
	for n, want := range map[int64]time.Duration{
		0: 0, 30: 30 * time.Second, -1: -time.Second,
		math.MaxInt64: 9223372036 * time.Second, math.MinInt64: -9223372036 * time.Second, 9223372037: 9223372036 * time.Second,
	} {
		if got := seconds(n); got != want {
			t.Errorf("%d seconds are %v, want %v", n, got, want)
		}
	}
}
