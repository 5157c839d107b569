package cri

import (
	"bytes"
	"testing"
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
