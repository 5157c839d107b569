package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"

	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"

	"crisp/test/testkit/prometheus"
	"crisp/test/testkit/svg"
)

const (
	column, line = 42.0, 26.0 // of the board's grid
	gap          = 3.0        // on each side of a panel
	letters      = 11.0       // their size
	entry        = 14.0       // between two lines of a legend
	points       = 150        // of a curve, at most
)

// colors of curves can be told from each other, and from either ground.
var colors = [...]string{
	"#3b82c4", "#e07b28", "#3a9d4e", "#d1495b", "#8a63c9", "#a3785a", "#d66fb0", "#8b8f96", "#a8a417", "#1fa5b5",
	"#5b6fd6", "#c75d2c", "#6aa84f", "#b0407a", "#4f8f8b", "#b58b00",
}

// series is a curve: a name and a value for each step, NaN where there is none.
type series struct {
	name   string
	values []float64
}

// draw asks for the data of each panel, and draws all in their places.
func draw(ctx context.Context, server *prometheus.Server, board prometheus.Board, from, to time.Time) ([]byte, error) {
	step := max(interval, to.Sub(from)/points).Round(time.Second)
	window := v1.Range{Start: from, End: to, Step: step}
	width, height := 0.0, 0.0
	for _, p := range board.Panels {
		width = max(width, float64(p.GridPos.X+p.GridPos.W)*column)
		height = max(height, float64(p.GridPos.Y+p.GridPos.H)*line)
	}

	d := svg.New(width, height, letters, fmt.Sprintf("The board %q after %v of load", board.Title, to.Sub(from).Round(time.Second)))
	for _, p := range board.Panels {
		b := box{float64(p.GridPos.X)*column + gap, float64(p.GridPos.Y)*line + gap, float64(p.GridPos.W)*column - 2*gap, float64(p.GridPos.H)*line - 2*gap}
		if p.Row() {
			d.Strong(b.x+2, b.y+b.height/2+letters*0.6, svg.Start, p.Title)
			continue
		}

		data, err := ask(ctx, server, p, window)
		if err != nil {
			return nil, fmt.Errorf("panel %q: %w", p.Title, err)
		}
		u, err := units(p.Unit())
		if err != nil {
			return nil, fmt.Errorf("panel %q: %w", p.Title, err)
		}
		drawPanel(d, b, panel{p.Title, u, p.Stacked(), data, to.Sub(from), step})
	}
	return d.Done(), nil
}

// ask gets the series of a panel. That there are none is an error.
func ask(ctx context.Context, server *prometheus.Server, p prometheus.Panel, window v1.Range) ([]series, error) {
	var all []series
	for _, t := range p.Targets {
		matrix, err := server.Range(ctx, t.Query(interval), window)
		if err != nil {
			return nil, err
		}
		if len(matrix) == 0 {
			return nil, fmt.Errorf("no data: %s", t.Expr)
		}

		for _, s := range matrix {
			name, err := t.Legend(s.Metric)
			if err != nil {
				return nil, err
			}
			all = append(all, series{name, spread(s.Values, window)})
		}
	}
	return all, nil
}

// spread gives each step of a window its value.
func spread(samples []model.SamplePair, window v1.Range) []float64 {
	values := make([]float64, int(window.End.Sub(window.Start)/window.Step)+1)
	for i := range values {
		values[i] = math.NaN()
	}
	for _, s := range samples {
		i := int(math.Round(float64(s.Timestamp.Time().Sub(window.Start)) / float64(window.Step)))
		if i >= 0 && i < len(values) && !math.IsInf(float64(s.Value), 0) {
			values[i] = float64(s.Value)
		}
	}
	return values
}

// box is a place in the picture.
type box struct{ x, y, width, height float64 }

// panel is what is drawn in one.
type panel struct {
	title   string
	unit    unit
	stacked bool
	data    []series
	during  time.Duration
	step    time.Duration
}

// drawPanel draws a title, the curves on their scales, and the legend.
func drawPanel(d *svg.Drawing, b box, p panel) {
	d.Panel(b.x, b.y, b.width, b.height)
	d.Strong(b.x+8, b.y+16, svg.Start, p.title)

	high := 0.0
	for _, c := range p.layers() {
		high = max(high, top(c))
	}
	ticks := p.unit.ticks(high)

	wide := 0.0
	for _, t := range ticks {
		wide = max(wide, textWidth(t.text))
	}
	lines := p.legend(b.width - 16)
	plot := box{b.x + wide + 16, b.y + 28, 0, b.height - 28 - 20 - float64(len(lines))*entry}
	plot.width = b.x + b.width - 12 - plot.x

	full := ticks[len(ticks)-1].value
	y := func(v float64) float64 { return plot.y + plot.height*(1-v/full) }
	for _, t := range ticks {
		d.Grid(plot.x, y(t.value), plot.x+plot.width, y(t.value))
		d.Faint(plot.x-5, y(t.value)+letters*0.35, svg.End, t.text)
	}
	drawTime(d, plot, p.during)

	x := func(i int) float64 {
		return plot.x + plot.width*min(1, float64(i)*float64(p.step)/float64(p.during))
	}
	// The lowest is drawn last: those above it that are 0 all the time do not hide it.
	curves := p.layers()
	for i, c := range slices.Backward(curves) {
		below := func(int) float64 { return 0 }
		if i > 0 {
			below = func(n int) float64 { return curves[i-1][n] }
		}
		drawCurve(d, c, x, y, colors[i%len(colors)], p.stacked, below)
	}
	drawLegend(d, b.x+8, plot.y+plot.height+20+entry-4, lines)
}

// layers are the series as they are drawn: each on top of those before it if they are
// stacked.
func (p panel) layers() [][]float64 {
	var all [][]float64
	below := make([]float64, len(p.data[0].values))
	for _, s := range p.data {
		if !p.stacked {
			all = append(all, s.values)
			continue
		}
		for n, v := range s.values {
			if !math.IsNaN(v) {
				below[n] += v
			}
		}
		all = append(all, slices.Clone(below))
	}
	return all
}

// top is the greatest value.
func top(values []float64) float64 {
	high := 0.0
	for _, v := range values {
		if v > high { // not if it is no number
			high = v
		}
	}
	return high
}

// drawTime writes the minutes since the beginning below a plot.
func drawTime(d *svg.Drawing, plot box, during time.Duration) {
	step := time.Minute
	if during < 2*time.Minute {
		step = 10 * time.Second
	}
	for t := time.Duration(0); t <= during; t += step {
		at := plot.x + plot.width*float64(t)/float64(during)
		text := fmt.Sprintf("%d:%02d", int(t.Minutes()), int(t.Seconds())%60)
		d.Faint(at, plot.y+plot.height+letters+4, svg.Middle, text)
	}
}

// drawCurve draws values, with a dot where one has no neighbour, and fills the area
// above those below if it has one.
func drawCurve(d *svg.Drawing, values []float64, x func(int) float64, y func(float64) float64, color string, filled bool, below func(int) float64) {
	var run, ground []svg.Point
	end := func() {
		switch {
		case len(run) == 1:
			d.Dot(run[0].X, run[0].Y, 1.5, color)
		case len(run) > 1:
			if filled {
				slices.Reverse(ground)
				d.Area(slices.Concat(straight(run), straight(ground)), color)
			}
			d.Curve(straight(run), color, 1.3)
		}
		run, ground = nil, nil
	}

	for i, v := range values {
		if math.IsNaN(v) {
			end()
			continue
		}
		run = append(run, svg.Point{X: x(i), Y: y(v)})
		ground = append(ground, svg.Point{X: x(i), Y: y(below(i))})
	}
	end()
}

// straight leaves out points in the middle of a level line.
func straight(run []svg.Point) []svg.Point {
	var kept []svg.Point
	for i, p := range run {
		if i == 0 || i == len(run)-1 || run[i-1].Y != p.Y || run[i+1].Y != p.Y {
			kept = append(kept, p)
		}
	}
	return kept
}

// textWidth is about how wide a text is, in whatever font the reader has.
func textWidth(text string) float64 {
	width := 0.0
	for _, r := range text {
		switch {
		case strings.ContainsRune("iljtfr.,:;' ", r):
			width += 0.37
		case unicode.IsUpper(r) || strings.ContainsRune("mw", r):
			width += 0.75
		default:
			width += 0.61
		}
	}
	return width * letters
}

// named is a series in a legend, at a distance from the line's beginning.
type named struct {
	series int
	text   string
	at     float64
}

// legend breaks the names into lines of a width.
func (p panel) legend(width float64) [][]named {
	lines := [][]named{nil}
	at := 0.0
	for i, s := range p.data {
		wide := textWidth(s.name) + 28
		if at > 0 && at+wide > width {
			lines, at = append(lines, nil), 0
		}
		last := len(lines) - 1
		lines[last] = append(lines[last], named{i, s.name, at})
		at += wide
	}
	return lines
}

func drawLegend(d *svg.Drawing, x, y float64, lines [][]named) {
	for i, l := range lines {
		for _, n := range l {
			at := y + float64(i)*entry
			d.Line(x+n.at, at-4, x+n.at+10, at-4, colors[n.series%len(colors)], 3)
			d.Text(x+n.at+14, at, svg.Start, n.text)
		}
	}
}
