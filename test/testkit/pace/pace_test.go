package pace

import (
	"testing"
	"time"
)

func TestScale(t *testing.T) {
	for value, want := range map[string]time.Duration{"": time.Second, "2.5": 2500 * time.Millisecond, "0": time.Second, "fast": time.Second} {
		t.Setenv("CRISP_TIME_SCALE", value)
		if got := Scale(time.Second); got != want {
			t.Errorf("with %q: got %v, want %v", value, got, want)
		}
	}
}
