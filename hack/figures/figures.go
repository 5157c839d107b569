package main

import (
	"fmt"
	"slices"
	"strings"
)

// long is the number of lines from which a function should have paragraphs.
const long = 20

// figure is a metric, a row of the table.
type figure struct {
	name string
	of   func(*tree) string
}

// figures are the rows of the table.
func figures() []figure {
	return []figure{
		{"functions", func(t *tree) string { return fmt.Sprint(len(t.functions)) }},
		{"mean lines of those with several", meanLines},
		{"over 60 / over 100 lines", func(t *tree) string {
			return fmt.Sprintf("%d / %d", len(t.longer(60)), len(t.longer(100)))
		}},
		{"tokens per function, p50", func(t *tree) string { return fmt.Sprint(quantile(t.tokens(), 50)) }},
		{"tokens per function, p99", func(t *tree) string { return fmt.Sprint(quantile(t.tokens(), 99)) }},
		{"tokens per line", tokensPerLine},
		{"blank lines per 100 lines of bodies", func(t *tree) string {
			return t.share(func(f function) int { return f.blank })
		}},
		{"comments in bodies per 100 lines", func(t *tree) string {
			return t.share(func(f function) int { return f.comments })
		}},
		{"functions of 20 lines and more without a blank line", withoutParagraph},
		{"cyclomatic complexity over 15", func(t *tree) string {
			n := 0
			for _, f := range t.functions {
				if f.paths > 15 {
					n++
				}
			}
			return percent(n, len(t.functions))
		}},
		{"share of comments", func(t *tree) string { return percent(t.commentLines, t.lines) }},
		{"documented packages", documented},
		{"widest packages, imports", widest},
	}
}

// longer are the functions of more than n lines.
func (t *tree) longer(n int) []function {
	var all []function
	for _, f := range t.functions {
		if f.lines > n {
			all = append(all, f)
		}
	}
	return all
}

func (t *tree) tokens() []int {
	var all []int
	for _, f := range t.functions {
		all = append(all, f.tokens)
	}
	return all
}

// share is the number of lines of a kind per 100 lines of bodies.
func (t *tree) share(kind func(function) int) string {
	n, lines := 0, 0
	for _, f := range t.functions {
		n += kind(f)
		lines += f.inside
	}
	return fmt.Sprintf("%.1f", 100*float64(n)/float64(max(lines, 1)))
}

func meanLines(t *tree) string {
	lines, several := 0, t.longer(1)
	for _, f := range several {
		lines += f.lines
	}
	return fmt.Sprintf("%.1f", float64(lines)/float64(max(len(several), 1)))
}

// tokensPerLine ignores blank lines and comments.
func tokensPerLine(t *tree) string {
	tokens, lines := 0, 0
	for _, f := range t.functions {
		tokens += f.tokens
		lines += f.lines - f.blank - f.comments
	}
	return fmt.Sprintf("%.1f", float64(tokens)/float64(max(lines, 1)))
}

func withoutParagraph(t *tree) string {
	n, all := 0, t.longer(long-1)
	for _, f := range all {
		if f.blank == 0 {
			n++
		}
	}
	return percent(n, len(all))
}

func documented(t *tree) string {
	n := 0
	for _, p := range t.packages {
		if p.documented {
			n++
		}
	}
	return fmt.Sprintf("%d/%d", n, len(t.packages))
}

// widest names the three packages with the most imports.
func widest(t *tree) string {
	var all []*pkg
	for _, p := range t.packages {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *pkg) int { return len(b.imports) - len(a.imports) })

	var names []string
	for _, p := range all[:min(3, len(all))] {
		name := strings.TrimPrefix(strings.TrimPrefix(p.name, t.dir), "/")
		names = append(names, fmt.Sprintf("%s %d", name, len(p.imports)))
	}
	return strings.Join(names, ", ")
}

// quantile is the value that p of 100 values do not exceed.
func quantile(values []int, p int) int {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[(len(values)-1)*p/100]
}

func percent(n, of int) string {
	return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(max(of, 1)))
}
