// Package svg draws pictures for the documentation. Their colors follow the
// reader's scheme, light or dark.
package svg

import (
	"bytes"
	"fmt"
	"html"
)

// Drawing is a picture under construction, in units of its view box.
type Drawing struct {
	bytes.Buffer
}

// Point is a place in a picture: y grows downwards.
type Point struct{ X, Y float64 }

// style has the colors of everything but the data, whose colors must be legible on
// both backgrounds.
const style = `<style>
.ground { fill: #fff } .panel { fill: #f6f7f9; stroke: #d8dbe0 }
text { fill: #24292f } .faint { fill: #5f6773 } .grid { stroke: #d8dbe0 }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117 } .panel { fill: #161b22; stroke: #30363d }
text { fill: #dde3ea } .faint { fill: #929ba6 } .grid { stroke: #30363d }
}
</style>
`

// New begins a picture whose letters have a size. The title is what is read to those
// who do not see it; [Drawing.Text] shows it.
func New(width, height, letters float64, title string) *Drawing {
	d := &Drawing{}
	fmt.Fprintf(d, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="%g">`+"\n", width, height, letters)
	fmt.Fprintf(d, "<title>%s</title>\n%s", html.EscapeString(title), style)
	d.WriteString(`<rect width="100%" height="100%" class="ground"/>` + "\n")
	return d
}

// Panel draws the ground of a part of the picture.
func (d *Drawing) Panel(x, y, width, height float64) {
	fmt.Fprintf(d, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="3" class="panel"/>`+"\n", x, y, width, height)
}

// Grid draws a line of a scale.
func (d *Drawing) Grid(x1, y1, x2, y2 float64) {
	fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="grid"/>`+"\n", x1, y1, x2, y2)
}

// Line draws one of the data.
func (d *Drawing) Line(x1, y1, x2, y2 float64, color string, width int) {
	fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%d"/>`+"\n", x1, y1, x2, y2, color, width)
}

// Dot draws a disk.
func (d *Drawing) Dot(x, y, radius float64, color string) {
	fmt.Fprintf(d, `<circle cx="%.1f" cy="%.1f" r="%g" fill="%s"/>`+"\n", x, y, radius, color)
}

// Anchor is the place of a text that its coordinates are about.
type Anchor string

// The anchors.
const (
	Start  Anchor = "start"
	Middle Anchor = "middle"
	End    Anchor = "end"
)

// Text writes a line.
func (d *Drawing) Text(x, y float64, at Anchor, text string) { d.write(x, y, at, "", text) }

// Faint writes what is less important, like the numbers of a scale.
func (d *Drawing) Faint(x, y float64, at Anchor, text string) {
	d.write(x, y, at, ` class="faint"`, text)
}

// Strong writes a heading.
func (d *Drawing) Strong(x, y float64, at Anchor, text string) {
	d.write(x, y, at, ` font-weight="bold"`, text)
}

func (d *Drawing) write(x, y float64, at Anchor, attribute, text string) {
	fmt.Fprintf(d, `<text x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>`+"\n", x, y, at, attribute, html.EscapeString(text))
}

// Curve connects points.
func (d *Drawing) Curve(points []Point, color string, width float64) {
	fmt.Fprintf(d, `<polyline fill="none" stroke="%s" stroke-width="%g" points="`, color, width)
	d.points(points)
	d.WriteString("\"/>\n")
}

// Area fills what the points surround, lightly.
func (d *Drawing) Area(points []Point, color string) {
	fmt.Fprintf(d, `<polygon fill="%s" fill-opacity="0.15" points="`, color)
	d.points(points)
	d.WriteString("\"/>\n")
}

func (d *Drawing) points(points []Point) {
	for i, p := range points {
		if i > 0 {
			d.WriteByte(' ')
		}
		fmt.Fprintf(d, "%.1f,%.1f", p.X, p.Y)
	}
}

// Done ends the picture and returns it.
func (d *Drawing) Done() []byte {
	d.WriteString("</svg>\n")
	return d.Bytes()
}
