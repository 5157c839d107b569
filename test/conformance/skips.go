package main

import (
	"bufio"
	_ "embed"
	"fmt"
	"os"
	"regexp"
	"strings"
)

//go:embed skips.txt
var skipList string

// skip is a line of the skip list.
type skip struct {
	never   bool // left out, rather than free to skip itself
	pattern *regexp.Regexp
	reason  string
}

var skipLine = regexp.MustCompile(`^(never|may|without:\S+)\s+(.*?)\s+#\s+(\S.*)$`)

func parseSkips(list string) ([]skip, error) {
	var skips []skip
	lines := bufio.NewScanner(strings.NewReader(list))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		m := skipLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf(`skip list, line %d: want "never|may|without:PATH PATTERN # reason"`, n)
		}
		pattern, err := regexp.Compile(m[2])
		if err != nil {
			return nil, fmt.Errorf("skip list, line %d: %w", n, err)
		}
		if path, ok := strings.CutPrefix(m[1], "without:"); ok {
			if _, err := os.Stat(path); err == nil {
				continue // the machine has it: no excuse
			}
		}
		skips = append(skips, skip{m[1] == "never", pattern, m[3]})
	}
	return skips, lines.Err()
}

// focused gives every spec leave to be skipped, when only some are asked for.
var focused = skip{pattern: regexp.MustCompile(""), reason: "not asked for"}
