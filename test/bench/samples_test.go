package main

import (
	"slices"
	"testing"
)

func TestQuantile(t *testing.T) {
	v := []float64{1, 2, 3, 4}
	for q, want := range map[float64]float64{0: 1, 0.25: 1, 0.5: 2, 0.75: 3, 0.99: 4, 1: 4} {
		if got := quantile(v, q); got != want {
			t.Errorf("%g: got %g, want %g", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: got %g", got)
	}
}

// sampled has two rounds of a call and of a rate on both runtimes, and a third
// of one of them.
func sampled() *bench {
	b := &bench{}
	units := map[string]string{"call": "ms", started: "1/s"}
	for name, values := range map[string][][]float64{
		"call":  {{1, 1, 9}, {2, 2, 2}, {5}},
		started: {{30}, {10}, {10}},
	} {
		for round, v := range values {
			for _, x := range v {
				b.samples.add(Sample{Phase: "p", Runtime: ours, Round: round, Name: name, Value: x, Unit: units[name]})
				if round < 2 {
					b.samples.add(Sample{Phase: "p", Runtime: theirs, Round: round, Name: name, Value: 10, Unit: units[name]})
				}
			}
		}
	}

	return b
}

func TestBetterBy(t *testing.T) {
	b := sampled()
	if got, want := b.speedUps(key{"p", "call", 0}), []float64{5, 10}; !slices.Equal(got, want) {
		t.Errorf("lower durations are better: got %v, want %v", got, want)
	}
	if got, want := b.speedUps(key{"p", started, 0}), []float64{1, 3}; !slices.Equal(got, want) {
		t.Errorf("higher rates are better: got %v, want %v", got, want)
	}
}

func TestSeriesAreApart(t *testing.T) {
	b := sampled()
	b.samples.add(Sample{Phase: "p", Runtime: ours, Load: 8, Name: "call", Value: 7})
	if got, want := b.samples.of(key{"p", "call", 0}, ours).whole(), []float64{1, 1, 2, 2, 2, 5, 9}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := len(b.samples.keys("p")); got != 3 {
		t.Errorf("got %d keys, want 3", got)
	}
}
