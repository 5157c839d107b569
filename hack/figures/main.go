// Command figures prints metrics of the code's readability: the length and
// density of functions, paragraphs in their bodies, the share of comments, the
// imports of packages. Its arguments are the directories of checkouts; it
// prints a column for each, so that a tree can be compared with an earlier
// version, or with others:
//
//	go run ./hack/figures . ../before
//
// It counts the code of the programs: no tests, no generated code, and none of
// the directories hack, test and vendor.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: figures CHECKOUT...")
		os.Exit(2)
	}

	var trees []*tree
	for _, dir := range os.Args[1:] {
		t, err := read(dir)
		if err != nil {
			fmt.Fprintf(os.Stderr, "figures: read %s: %v\n", dir, err)
			os.Exit(1)
		}
		trees = append(trees, t)
	}

	if err := write(os.Stdout, trees); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

// write prints a table in Markdown with a column for each tree.
func write(out *os.File, trees []*tree) error {
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', tabwriter.Debug)
	head, line := " ", "---"
	for _, t := range trees {
		head += "\t " + filepath.Base(t.dir)
		line += "\t ---"
	}

	fmt.Fprintf(w, "|%s\t\n|%s\t\n", head, line)

	for _, f := range figures() {
		row := " " + f.name
		for _, t := range trees {
			row += "\t " + f.of(t)
		}
		fmt.Fprintf(w, "|%s\t\n", row)
	}

	return w.Flush()
}
