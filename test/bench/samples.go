package main

import (
	"encoding/json"
	"os"
	"slices"
	"sync"
	"time"
)

// Sample is one measurement.
type Sample struct {
	Phase   string  `json:"phase"`
	Runtime string  `json:"runtime"`
	Round   int     `json:"round"`
	Load    int     `json:"load,omitempty"` // clients, or pods
	Name    string  `json:"name"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
}

// samples collects measurements. It is safe for concurrent use.
type samples struct {
	mu  sync.Mutex
	all []Sample
}

func (s *samples) add(x Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, x)
}

func (s *samples) write(path string) error {
	data, err := json.MarshalIndent(s.all, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// key identifies a series of samples.
type key struct {
	phase, name string
	load        int
}

// series are the samples of one runtime for one key, by round.
type series [][]float64

// of returns one runtime's series for a key.
func (s *samples) of(k key, runtime string) series {
	var out series
	for _, x := range s.all {
		if x.Phase != k.phase || x.Name != k.name || x.Load != k.load || x.Runtime != runtime {
			continue
		}
		for len(out) <= x.Round {
			out = append(out, nil)
		}
		out[x.Round] = append(out[x.Round], x.Value)
	}
	return out
}

// keys lists the keys of a phase in the order of their first sample.
func (s *samples) keys(phase string) []key {
	var out []key
	for _, x := range s.all {
		k := key{x.Phase, x.Name, x.Load}
		if x.Phase == phase && !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

// unit returns the unit of a series.
func (s *samples) unit(k key) string {
	for _, x := range s.all {
		if x.Phase == k.phase && x.Name == k.name && x.Load == k.load {
			return x.Unit
		}
	}
	return ""
}

// whole returns all values, sorted.
func (s series) whole() []float64 {
	return slices.Sorted(slices.Values(slices.Concat(s...)))
}

// quantile returns the q-quantile of sorted values, by nearest rank; 0 if there are
// none.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// medians returns the medians by round, for rounds with values.
func (s series) medians() map[int]float64 {
	out := map[int]float64{}
	for round, values := range s {
		if len(values) > 0 {
			out[round] = quantile(slices.Sorted(slices.Values(values)), 0.5)
		}
	}
	return out
}

// ratios returns the ratios of other's medians to those of s by round, sorted.
func (s series) ratios(other series) []float64 {
	var out []float64
	theirs := other.medians()
	for round, ours := range s.medians() {
		if b, ok := theirs[round]; ok && ours > 0 {
			out = append(out, b/ours)
		}
	}
	slices.Sort(out)
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
