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

func TestLoad(t *testing.T) {
	for value, want := range map[string]int{"": 50, "0.5": 50, "2": 25, "10": 10} {
		t.Setenv("CRISP_TIME_SCALE", value)
		if got := Load(50); got != want {
			t.Errorf("with %q: got %d, want %d", value, got, want)
		}
	}
}
