//go:build crash

package crash

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var reportFile = flag.String("report", "", "put the table of results into this `file`, between its marks")

// Marks between which the table is in the file.
const (
	tableBegin = "<!-- crash table: make crash REPORT=1 -->\n"
	tableEnd   = "<!-- end of crash table -->\n"
)

// score counts cases by operation and way.
type score struct {
	ops, ways []string
	tried     map[[2]string]int
	survived  map[[2]string]int
}

func (s *score) add(op, way string, survived bool) {
	if s.tried == nil {
		s.tried, s.survived = map[[2]string]int{}, map[[2]string]int{}
	}
	if !slices.Contains(s.ops, op) {
		s.ops = append(s.ops, op)
	}
	if !slices.Contains(s.ways, way) {
		s.ways = append(s.ways, way)
	}
	for _, key := range [][2]string{{op, way}, {op, ""}, {"", way}, {"", ""}} {
		s.tried[key]++
		if survived {
			s.survived[key]++
		}
	}
}

// String is a table in Markdown: cases survived of those tried.
func (s *score) String() string {
	var b strings.Builder
	row := func(name string, cell func(way string) string) {
		fmt.Fprintf(&b, "| %s |", name)
		for _, way := range append(slices.Clone(s.ways), "") {
			fmt.Fprintf(&b, " %s |", cell(way))
		}
		b.WriteByte('\n')
	}
	row("operation", func(way string) string {
		if way == "" {
			return "all"
		}
		return way
	})
	row("---", func(string) string { return "---" })
	for _, op := range append(slices.Clone(s.ops), "") {
		name := op
		if op == "" {
			name = "all"
		}
		row(name, func(way string) string {
			key := [2]string{op, way}
			if s.tried[key] == 0 {
				return ""
			}
			return fmt.Sprintf("%d of %d", s.survived[key], s.tried[key])
		})
	}
	return b.String()
}

// publish prints the table, and puts it where -report says.
func (s *score) publish(t *testing.T) {
	t.Helper()
	fmt.Print(s)
	if *reportFile == "" {
		return
	}
	text, err := os.ReadFile(*reportFile)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(text, []byte(tableBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(tableEnd))
	if !ok || !ok2 {
		t.Fatalf("%s lacks the marks %q and %q", *reportFile, tableBegin, tableEnd)
	}
	text = slices.Concat(before, []byte(tableBegin), []byte(s.String()), []byte(tableEnd), after)
	if err := os.WriteFile(*reportFile, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// complete reports whether the test runs as a whole.
func complete(t *testing.T) bool {
	t.Helper()
	return flag.Lookup("test.run").Value.String() == "" && !t.Skipped()
}
