package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// line is one of a log in the format of the CRI.
type line struct {
	at      time.Time
	stream  string
	partial bool
	content string
}

var lineFormat = regexp.MustCompile(`(?s)^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) (.*)\n$`)

// parse reads a log and checks its form and the order of its times.
func parse(t *testing.T, data []byte) []line {
	t.Helper()
	var all []line
	for l := range strings.Lines(string(data)) {
		m := lineFormat.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("line %d of the log is not in the CRI's format: %.200q", len(all)+1, l)
		}
		at, err := time.Parse(time.RFC3339Nano, m[1])
		if err != nil {
			t.Fatal(err)
		}
		if len(all) > 0 && at.Before(all[len(all)-1].at) {
			t.Fatalf("line %d of the log is older than the one before", len(all)+1)
		}
		all = append(all, line{at, m[2], m[3] == "P", m[4]})
	}
	return all
}

// text puts together what was written to a stream, or to any if it is "".
func text(lines []line, stream string) string {
	var b strings.Builder
	for _, l := range lines {
		if stream != "" && l.stream != stream {
			continue
		}
		b.WriteString(l.content)
		if !l.partial {
			b.WriteByte('\n')
		}
	}
	return b.String()
}
