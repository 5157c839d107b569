package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/template"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	yaml "sigs.k8s.io/yaml/goyaml.v2"

	"crisp/runtime/untrusted"
)

// format is the value of the flag --output.
type format struct {
	name     string
	template *template.Template
}

const templatePrefix = "go-template="

// Set implements pflag.Value.
func (f *format) Set(text string) error {
	if body, ok := strings.CutPrefix(text, templatePrefix); ok {
		t, err := template.New("output").Parse(body)
		*f = format{"go-template", t}
		return err
	}
	switch text {
	case "table", "wide", "json", "yaml":
		f.name = text
		return nil
	}
	return fmt.Errorf("%q is none of table, wide, json, yaml, %sTEMPLATE", text, templatePrefix)
}

func (f *format) String() string { return f.name }

// Type implements pflag.Value.
func (f *format) Type() string { return "format" }

func (f *format) wide() bool { return f.name == "wide" }

// isTable reports whether a person reads the output.
func (f *format) isTable() bool { return f.name == "" || f.name == "table" || f.name == "wide" }

// print prints objects, or the table of them.
func (f *format) print(out io.Writer, objects any, t func() *table) error {
	if f.isTable() {
		return t().print(out)
	}

	data, err := encode(objects, "  ")
	if err != nil {
		return err
	}

	if f.name == "json" {
		_, err = out.Write(data)
		return err
	}

	// The names are those that JSON has.
	var plain any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&plain); err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	plain = numbers(plain)
	if f.name == "go-template" {
		var text bytes.Buffer // all of it, or an error
		if err := f.template.Execute(&text, plain); err != nil {
			return err
		}
		_, err := out.Write(text.Bytes())
		return err
	}

	if data, err = yaml.Marshal(plain); err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	_, err = out.Write(data)
	return err
}

// encode returns an object as JSON, with a line end. Characters that a terminal may
// obey are escaped: labels and the like are other people's text.
func encode(object any, indent string) ([]byte, error) {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(object); err != nil {
		return nil, fmt.Errorf("encode output: %w", err)
	}

	var safe bytes.Buffer
	for _, r := range text.String() {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			safe.WriteRune(r)
		default:
			for _, unit := range utf16.AppendRune(nil, r) {
				fmt.Fprintf(&safe, "\\u%04x", unit)
			}
		}
	}
	return safe.Bytes(), nil
}

// numbers makes integers of those numbers that are, for templates to print and
// compare.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i
		}
		f, _ := v.Float64() // it is from an encoder
		return f
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case map[string]any:
		for key := range v {
			v[key] = numbers(v[key])
		}
	}
	return v
}

// style is a color of the terminal.
type style string

// Styles of cells.
const (
	plain  style = ""
	good   style = "\x1b[32m"
	bad    style = "\x1b[31m"
	doubt  style = "\x1b[33m"
	strong style = "\x1b[1m"
	ends         = "\x1b[0m"
)

// in is a text in a style.
func (s style) in(text string) string {
	if s == plain {
		return text
	}
	return string(s) + text + ends
}

// cell is a text in a table.
type cell struct {
	text  string
	style style
}

// table is rows of cells, of which the first has the columns' names.
type table struct {
	rows [][]cell
}

func newTable(columns ...string) *table {
	t := &table{}
	t.add(columns...)
	for i := range t.rows[0] {
		t.rows[0][i].style = strong
	}
	return t
}

// maxCell bounds a cell, in bytes.
const maxCell = 512

// add adds a row. Texts may come from a container or an image.
func (t *table) add(texts ...string) {
	var row []cell
	for _, text := range texts {
		if text == "" {
			text = "-"
		}
		row = append(row, cell{text: untrusted.Of(text).Name(maxCell)})
	}
	t.rows = append(t.rows, row)
}

// paint gives a cell of the last row a style.
func (t *table) paint(column int, s style) { t.rows[len(t.rows)-1][column].style = s }

// print prints the table, with colors on a terminal.
func (t *table) print(out io.Writer) error {
	_, err := io.WriteString(out, t.text(colorsFor(out)))
	return err
}

// colorsFor reports whether text on a stream may have colors.
func colorsFor(out io.Writer) bool {
	_, ok := terminal(out)
	return ok && os.Getenv("NO_COLOR") == ""
}

// text is the table as text.
func (t *table) text(colors bool) string {
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}

	var b strings.Builder
	for _, row := range t.rows {
		for i, c := range row {
			text := c.text
			if colors {
				text = c.style.in(text)
			}
			b.WriteString(text)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// since is how long ago a time in nanoseconds was, as kubectl has it.
func since(nanoseconds int64, now time.Time) string {
	if nanoseconds <= 0 {
		return ""
	}
	return duration(now.Sub(time.Unix(0, nanoseconds)))
}

// duration is a duration in its largest units.
func duration(d time.Duration) string {
	d = max(d, 0)
	const day = 24 * time.Hour
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 10*time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 3*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/day)
}

// bytesOf is a number of bytes in binary units.
func bytesOf(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, names := float64(n)/unit, []string{"KiB", "MiB", "GiB", "TiB", "PiB"}
	for len(names) > 1 && value >= unit {
		value, names = value/unit, names[1:]
	}
	return fmt.Sprintf("%.1f %s", value, names[0])
}
