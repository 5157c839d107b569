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

var reportFile = flag.String("report", "", "update the tables of results in this `file`")

// Marks around a table in the file.
const (
	tableBegin = "<!-- table of %s -->\n"
	tableEnd   = "<!-- end of table -->\n"
)

// score counts cases by operation and by disturbance.
type score struct {
	// first is the header of the first column.
	first     string
	ops, ways []string
	tried     map[[2]string]int
	passed    map[[2]string]int
}

func (s *score) add(op, way string, passed bool) {
	if s.tried == nil {
		s.tried, s.passed = map[[2]string]int{}, map[[2]string]int{}
	}
	if !slices.Contains(s.ops, op) {
		s.ops = append(s.ops, op)
	}
	if !slices.Contains(s.ways, way) {
		s.ways = append(s.ways, way)
	}

	for _, key := range [][2]string{{op, way}, {op, ""}, {"", way}, {"", ""}} {
		s.tried[key]++
		if passed {
			s.passed[key]++
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
			return fmt.Sprintf("%d of %d", s.passed[key], s.tried[key])
		})
	}

	return b.String()
}

// publish prints the table, and updates it in the file of -report.
func (s *score) publish(t *testing.T, name string) {
	t.Helper()
	if !partial() {
		publish(t, name, s.String())
	}
}

// partial reports whether -run or -every selects only some cases of a test.
func partial() bool {
	return *every > 1 || strings.Contains(flag.Lookup("test.run").Value.String(), "/")
}

// publish prints a table, and puts it between its marks in the file of -report.
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
