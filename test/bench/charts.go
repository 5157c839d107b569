package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"crisp/test/testkit/svg"
)

// chart is a picture of results, and what the report calls it.
type chart struct {
	file, title string
	draw        func(b *bench, title string) []byte
}

// charts are those that there are results for.
func (b *bench) charts() []chart {
	var all []chart
	if len(b.samples.keys("serial")) > 0 {
		all = append(all,
			chart{"calls.svg", "Calls, one client: p50 (dot) to p99, ms", (*bench).callsChart},
			chart{"ready.svg", "Share of ready pods over time, one client, ms", (*bench).readyChart})
	}

	grows := func(file, title, name string, divisor, low float64) {
		if len(b.samples.of(key{"growth", name, 10}, ours)) > 0 || len(b.samples.of(key{"growth", name, networked}, ours)) > 0 {
			all = append(all, chart{file, title, func(b *bench, title string) []byte { return b.growthChart(title, name, divisor, low) }})
		}
	}

	grows("memory.svg", "Memory of the runtime's processes (PSS, MiB) by number of pods", "PSS", 1024, 10)
	grows("lists.svg", "ListPodSandbox (p50, ms) by number of pods, while one more is stuck", "ListPodSandbox"+whileStuck, 1, 0.1)
	grows("restart.svg", "Restart until ready (p50, ms) by number of pods", "restart", 1, 10)
	return all
}

// draw draws the charts into a directory.
func (b *bench) draw(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, c := range b.charts() {
		errs = append(errs, os.WriteFile(filepath.Join(dir, c.file), c.draw(b, c.title), 0o644))
	}
	return errors.Join(errs...)
}

// shown are the series in charts, each with a color of its own that color-blind
// readers can tell from the others.
var shown = [...]struct{ name, color string }{{ours, "#0072b2"}, {theirs, "#d55e00"}, {alone, "#777777"}}

// callsChart has a line for each call and runtime, from the median to the
// 99th percentile, on a logarithmic scale.
func (b *bench) callsChart(title string) []byte {
	keys := b.samples.keys("serial")
	const left, right, row = 150.0, 700.0, 30.0
	low, high := 1.0, 10.0
	for _, k := range keys {
		for _, s := range shown {
			if v := b.samples.of(k, s.name).whole(); len(v) > 0 {
				low, high = min(low, quantile(v, 0.5)), max(high, quantile(v, 0.99))
			}
		}
	}

	x := logScale(low, high, left, right)
	height := 70 + row*float64(len(keys))
	d := newChart(right+50, height, title)
	for _, tick := range powers(low, high) {
		d.Grid(x(tick), 45, x(tick), height-25)
		d.Faint(x(tick), height-8, svg.Middle, fmt.Sprintf("%g", tick))
	}

	for i, k := range keys {
		y := 60 + float64(i)*row
		d.Text(left-10, y+4, svg.End, k.name)
		for n, s := range shown {
			v := b.samples.of(k, s.name).whole()
			if len(v) == 0 {
				continue
			}
			at, from, to := y-6+float64(n)*6, x(quantile(v, 0.5)), x(quantile(v, 0.99))
			d.Line(from, at, to, at, s.color, 2)
			d.Dot(from, at, dot, s.color)
		}
	}

	legend(d, len(shown))
	return d.Done()
}

// readyChart shows for each duration the share of pods that were ready by then.
func (b *bench) readyChart(title string) []byte {
	const left, right, top, bottom = 60.0, 700.0, 50.0, 330.0
	curves := map[string][]float64{
		ours:   b.samples.of(key{"serial", "pod ready", 0}, ours).whole(),
		theirs: b.samples.of(key{"serial", "pod ready", 0}, theirs).whole(),
		alone:  b.samples.of(key{"serial", "CNI ADD", 0}, alone).whole(),
	}

	high := 1.0
	for _, v := range curves {
		high = max(high, quantile(v, 1))
	}

	high = math.Ceil(high/100) * 100
	x := func(v float64) float64 { return left + v/high*(right-left) }
	y := func(share float64) float64 { return bottom - share*(bottom-top) }
	d := newChart(right+50, bottom+45, title)
	for i := range 5 {
		share := float64(i) / 4
		d.Grid(left, y(share), right, y(share))
		d.Faint(left-8, y(share)+4, svg.End, fmt.Sprintf("%.0f%%", share*100))
		d.Faint(x(high*share), bottom+20, svg.Middle, fmt.Sprintf("%.0f", high*share))
	}

	for _, s := range shown {
		var points []svg.Point
		for i, v := range curves[s.name] {
			n := float64(len(curves[s.name]))
			points = append(points, svg.Point{X: x(v), Y: y(float64(i) / n)}, svg.Point{X: x(v), Y: y(float64(i+1) / n)})
		}
		d.Curve(points, s.color, 2)
	}

	legend(d, len(shown))
	return d.Done()
}

// growthChart shows how the median of something grows with the number of
// pods, on logarithmic scales, the vertical one from low on.
func (b *bench) growthChart(title, name string, divisor, low float64) []byte {
	const left, right, top, bottom = 70.0, 700.0, 50.0, 330.0
	values := func(size int, runtime string) float64 {
		return quantile(b.samples.of(key{"growth", name, size}, runtime).whole(), 0.5) / divisor
	}

	high := low * 10
	for _, size := range sizes[1:] {
		for _, s := range shown {
			high = max(high, values(size, s.name))
		}
	}

	x, rise := logScale(1, float64(sizes[len(sizes)-1]), left, right), logScale(low, high, 0, bottom-top)
	y := func(v float64) float64 { return bottom - rise(max(v, low)) }
	d := newChart(right+50, bottom+45, title)
	for _, tick := range powers(low, high) {
		d.Grid(left, y(tick), right, y(tick))
		d.Faint(left-8, y(tick)+4, svg.End, fmt.Sprintf("%g", tick))
	}

	for _, size := range sizes[1:] {
		d.Faint(x(float64(size)), bottom+20, svg.Middle, fmt.Sprint(size))
	}
	for _, s := range shown {
		var points []svg.Point
		for _, size := range sizes[1:] {
			if v := values(size, s.name); v > 0 {
				points = append(points, svg.Point{X: x(float64(size)), Y: y(v)})
			}
		}

		d.Curve(points, s.color, 2)
		for _, p := range points {
			d.Dot(p.X, p.Y, dot, s.color)
		}
	}

	legend(d, 2)
	return d.Done()
}

// dot is the radius of one.
const dot = 3

// newChart begins a chart with its title.
func newChart(width, height float64, title string) *svg.Drawing {
	d := svg.New(width, height, 12, title)
	d.Text(10, 18, svg.Start, title)
	return d
}

// legend names the first n series below the title.
func legend(d *svg.Drawing, n int) {
	for i, s := range shown[:n] {
		x := float64(20 + i*110)
		d.Dot(x, 32, dot, s.color)
		d.Text(x+8, 36, svg.Start, s.name)
	}
}

// logScale maps low to high onto from to to.
func logScale(low, high, from, to float64) func(float64) float64 {
	return func(v float64) float64 {
		return from + (math.Log(v)-math.Log(low))/(math.Log(high)-math.Log(low))*(to-from)
	}
}

// powers lists the powers of ten between low and high.
func powers(low, high float64) []float64 {
	var out []float64
	for e := math.Ceil(math.Log10(low)); e <= math.Log10(high); e++ {
		out = append(out, math.Pow(10, e))
	}
	return out
}
