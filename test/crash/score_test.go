//go:build crash

package crash

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var reportFile = flag.String("report", "", "put the table of results into this `file`, between its marks")

// Marks between which a table is in the file.
const (
	tableBegin = "<!-- table of %s -->\n"
	tableEnd   = "<!-- end of table -->\n"
)

// score counts cases by what was disturbed and how.
type score struct {
	// first is the head of the first column.
	first     string
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

	row(cmp.Or(s.first, "operation"), func(way string) string {
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
func (s *score) publish(t *testing.T, name string) {
	t.Helper()
	if !partial() {
		publish(t, name, s.String())
	}
}

// partial reports whether only some cases of a test are run.
func partial() bool { return strings.Contains(flag.Lookup("test.run").Value.String(), "/") }

// publish puts a text between the marks of its name in the report.
func publish(t *testing.T, name, text string) {
	t.Helper()
	fmt.Print(text)
	if *reportFile == "" {
		return
	}

	begin := fmt.Sprintf(tableBegin, name)
	file, err := os.ReadFile(*reportFile)
	if err != nil {
		t.Fatal(err)
	}

	before, rest, ok := strings.Cut(string(file), begin)
	_, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the marks %q and %q", *reportFile, begin, tableEnd)
	}

	if err := os.WriteFile(*reportFile, []byte(before+begin+text+tableEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
