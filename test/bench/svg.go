package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
)

// drawing is an SVG under construction.
type drawing struct {
	bytes.Buffer
}

type point struct{ x, y float64 }

func newDrawing(width, height float64, title string) *drawing {
	d := &drawing{}
	fmt.Fprintf(d, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(d, `<title>%[1]s</title><rect width="100%%" height="100%%" fill="#fff"/>`+"\n", html.EscapeString(title))
	d.text(10, 18, "start", title)
	return d
}

func (d *drawing) line(x1, y1, x2, y2 float64, color string, width int) {
	fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%d"/>`+"\n", x1, y1, x2, y2, color, width)
}

func (d *drawing) dot(x, y float64, color string) {
	fmt.Fprintf(d, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x, y, color)
}

func (d *drawing) text(x, y float64, anchor, text string) {
	fmt.Fprintf(d, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(text))
}

func (d *drawing) curve(points []point, color string) {
	fmt.Fprintf(d, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, color)
	for _, p := range points {
		fmt.Fprintf(d, "%.1f,%.1f ", p.x, p.y)
	}
	d.WriteString("\"/>\n")
}

// legend names the first n series below the title.
func (d *drawing) legend(n int) {
	for i, s := range shown[:n] {
		x := float64(20 + i*110)
		d.dot(x, 32, s.color)
		d.text(x+8, 36, "start", s.name)
	}
}

func (d *drawing) end() []byte {
	d.WriteString("</svg>\n")
	return d.Bytes()
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
