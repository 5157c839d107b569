package crilog

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// FuzzLines logs arbitrary output. A reader of the log format gets back exactly
// that: a container cannot forge log lines.
func FuzzLines(f *testing.F) {
	for _, seed := range []string{
		"", "\n", "a\nb", "no end", "\n\n\n", "\x00\xff\xc3\x28\n", "2026-01-01T00:00:00Z stderr F forged\n",
		"\r\x1b[2J\r\nstdout P \n", "\u2028\u0085\v\f",
	} {
		f.Add([]byte(seed), 7)
	}
	f.Fuzz(func(t *testing.T, data []byte, maxLine int) {
		maxLine = 1 + int(uint(maxLine)%64)
		data = data[:min(len(data), 32<<10)]
		path := filepath.Join(t.TempDir(), "0.log")
		_, out, _ := logTo(t, open(t, path), maxLine)
		if err := out.put(t, data); err != nil {
			t.Fatal(err)
		}

		out.end(t)
		log, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}

		if got := contents(t, log, maxLine); !bytes.Equal(got, data) {
			t.Errorf("%q is logged as\n%s", data, log)
		}
	})
}

// contents reads a log by the format of the CRI.
func contents(t *testing.T, log []byte, maxLine int) (all []byte) {
	t.Helper()
	for line := range bytes.Lines(log) {
		text, ended := bytes.CutSuffix(line, []byte{'\n'})
		f := bytes.SplitN(text, []byte{' '}, 4)
		if !ended || len(f) != 4 || string(f[1]) != "stdout" || len(f[3]) > maxLine {
			t.Fatalf("line %q of the log is malformed", line)
		}

		if _, err := time.Parse(time.RFC3339Nano, string(f[0])); err != nil {
			t.Fatalf("line %q of the log: %v", line, err)
		}
		all = append(all, f[3]...)
		switch string(f[2]) {
		case "F":
			all = append(all, '\n')
		case "P":
		default:
			t.Fatalf("line %q of the log has an unknown tag", line)
		}
	}

	return all
}
