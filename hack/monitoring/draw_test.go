package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"

	"crisp/test/testkit/prometheus"
	"crisp/test/testkit/svg"
)

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		unit string
		high float64
		want string
	}{
		{"short", 12, "0 5 10 15"},
		{"short", 0, "0.00 0.25 0.50 0.75 1.00"},
		{"short", 1, "0.00 0.25 0.50 0.75 1.00"},
		{"short", 3500, "0K 1K 2K 3K 4K"},
		{"ops", 0.17, "0.00 op/s, 0.05 op/s, 0.10 op/s, 0.15 op/s, 0.20 op/s"},
		{"s", 0.013, "0 ms, 5 ms, 10 ms, 15 ms"},
		{"s", 0.00003, "0 µs, 10 µs, 20 µs, 30 µs"},
		{"s", 2, "0.0 s, 0.5 s, 1.0 s, 1.5 s, 2.0 s"},
		{"bytes", 40 << 20, "0 MiB, 10 MiB, 20 MiB, 30 MiB, 40 MiB"},
		{"bytes", 1023, "0 B, 500 B, 1000 B, 1500 B"},
		{"Bps", 1.2e6, "0.0 MB/s, 0.5 MB/s, 1.0 MB/s, 1.5 MB/s"},
	} {
		u, err := units(c.unit)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		ticks := u.ticks(c.high)
		for _, tick := range ticks {
			got = append(got, tick.text)
		}
		separator := ", "
		if c.unit == "short" {
			separator = " "
		}
		if strings.Join(got, separator) != c.want {
			t.Errorf("%s to %g: %q, want %q", c.unit, c.high, got, c.want)
		}
		if last := ticks[len(ticks)-1].value; last < c.high*(1-1e-9) || len(ticks) > 5 {
			t.Errorf("%s to %g: %d ticks, to %g", c.unit, c.high, len(ticks), last)
		}
	}

	if _, err := units("furlongs"); err == nil {
		t.Error("a unit is drawn that is not known")
	}
}

// TestSpread puts samples where their time is, and nothing elsewhere.
func TestSpread(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(s float64, v float64) model.SamplePair {
		return model.SamplePair{Timestamp: model.TimeFromUnixNano(start.Add(time.Duration(s * 1e9)).UnixNano()), Value: model.SampleValue(v)}
	}
	got := spread([]model.SamplePair{at(2, 5), at(4, math.Inf(1)), at(6, 7), at(100, 8)}, v1.Range{Start: start, End: start.Add(7 * time.Second), Step: 2 * time.Second})
	if fmt.Sprint(got) != "[NaN 5 NaN 7]" {
		t.Errorf("spread: %v", got)
	}
}

// TestLayers stacks series, where one without a value counts as 0.
func TestLayers(t *testing.T) {
	p := panel{data: []series{{"a", []float64{1, math.NaN(), 3}}, {"b", []float64{10, 20, 30}}}}
	if got := fmt.Sprint(p.layers()); got != "[[1 NaN 3] [10 20 30]]" {
		t.Errorf("layers: %s", got)
	}
	p.stacked = true
	if got := fmt.Sprint(p.layers()); got != "[[1 0 3] [11 20 33]]" {
		t.Errorf("stacked layers: %s", got)
	}
}

// TestCurve breaks a curve where values are missing, and keeps one that stands alone.
func TestCurve(t *testing.T) {
	nan := math.NaN()
	d := &svg.Drawing{}
	drawCurve(d, []float64{1, 1, 1, 2, nan, 5, nan, 1, 2}, func(i int) float64 { return float64(i) }, func(v float64) float64 { return v }, "#123", false, ground)
	for _, want := range []string{
		`points="0.0,1.0 2.0,1.0 3.0,2.0"`, // without the middle of what is level
		`cx="5.0" cy="5.0"`,
		`points="7.0,1.0 8.0,2.0"`,
	} {
		if !strings.Contains(d.String(), want) {
			t.Errorf("the curve lacks %s:\n%s", want, d)
		}
	}
}

func ground(int) float64 { return 0 }

// TestLegend breaks lines before they are too wide.
func TestLegend(t *testing.T) {
	p := panel{data: make([]series, 20)}
	for i := range p.data {
		p.data[i].name = strings.Repeat("x", i)
	}

	const width = 300
	n := 0
	for _, line := range p.legend(width) {
		for _, entry := range line {
			if entry.series != n {
				t.Errorf("entry %d is series %d", n, entry.series)
			}
			n++
			if end := entry.at + textWidth(entry.text) + 14; end > width {
				t.Errorf("%q ends at %g", entry.text, end)
			}
		}
	}
	if n != len(p.data) {
		t.Errorf("%d of %d series are in the legend", n, len(p.data))
	}
}

// TestPicture requires that the documentation's picture is of the board as it is: of
// every panel, none without curves.
func TestPicture(t *testing.T) {
	board, err := prometheus.ReadBoard("dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("../../docs/operate/board.svg")
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > 300<<10 {
		t.Errorf("the picture has %d KiB", len(data)>>10)
	}

	panels, shapes := pictured(t, data)
	var want []string
	for _, p := range board.Panels {
		want = append(want, p.Title)
		if !p.Row() && shapes[p.Title] == 0 {
			t.Errorf("panel %q is empty", p.Title)
		}
	}
	if !slices.Equal(panels, want) {
		t.Errorf("the picture has the panels %q, the board %q: make board draws it again", panels, want)
	}
}

// pictured lists the headings of a picture, and counts the curves and dots after each.
func pictured(t *testing.T, data []byte) (headings []string, shapes map[string]int) {
	t.Helper()
	shapes = map[string]int{}
	heading, last := false, ""

	for dec := xml.NewDecoder(bytes.NewReader(data)); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return headings, shapes
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			heading = slices.ContainsFunc(token.Attr, func(a xml.Attr) bool { return a.Name.Local == "font-weight" })
			if token.Name.Local == "polyline" || token.Name.Local == "circle" {
				shapes[last]++
			}
		case xml.CharData:
			if heading {
				last = string(token)
				headings = append(headings, last)
				heading = false
			}
		}
	}
}
