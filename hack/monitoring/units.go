package main

import (
	"fmt"
	"math"
	"strconv"
)

// unit is how numbers are written: a value from scale^n on has the n-th of the names.
type unit struct {
	scale float64
	names []string
	// small has names of what is below 1, 1/scale and so on.
	small []string
}

// units are those of Grafana that the board uses.
func units(name string) (unit, error) {
	decimal := func(suffix string) unit {
		return unit{1000, []string{suffix, "K" + suffix, "M" + suffix, "G" + suffix}, nil}
	}
	switch name {
	case "short":
		return decimal(""), nil
	case "ops":
		return decimal(" op/s"), nil
	case "reqps":
		return decimal(" req/s"), nil
	case "s":
		return unit{1000, []string{" s"}, []string{" ms", " µs"}}, nil
	case "Bps":
		return unit{1000, []string{" B/s", " kB/s", " MB/s", " GB/s"}, nil}, nil
	case "bytes":
		return unit{1024, []string{" B", " KiB", " MiB", " GiB"}, nil}, nil
	}
	return unit{}, fmt.Errorf("the unit %q is not known here", name)
}

// tick is a value of a scale, and how it is written.
type tick struct {
	value float64
	text  string
}

// ticks are round values from 0 to the first that is not less than high, five at most.
// All are written with the same name of the unit.
func (u unit) ticks(high float64) []tick {
	if high <= 0 {
		high = 1
	}
	factor, name := 1.0, u.names[0]
	for _, n := range u.names[1:] {
		if high >= factor*u.scale {
			factor, name = factor*u.scale, n
		}
	}
	for _, n := range u.small {
		if high < factor {
			factor, name = factor/u.scale, n
		}
	}

	step := round(high / factor / 4)
	var all []tick
	for i := 0; ; i++ {
		v := float64(i) * step
		all = append(all, tick{v * factor, strconv.FormatFloat(v, 'f', decimals(step), 64) + name})
		if v*factor >= high*(1-1e-9) {
			return all
		}
	}
}

// round is the least of 1, 2, 2.5 and 5, times a power of ten, that is not less than v.
func round(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 2.5, 5} {
		if m*power >= v*(1-1e-9) {
			return m * power
		}
	}
	return 10 * power
}

// decimals is how many digits after the point a multiple of a round step needs.
func decimals(step float64) int {
	for n := range 9 {
		scaled := step * math.Pow(10, float64(n))
		if math.Abs(scaled-math.Round(scaled)) < 1e-6 {
			return n
		}
	}
	return 9
}
