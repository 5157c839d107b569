package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVerdicts(t *testing.T) {
	b := &bench{}
	for _, s := range []Sample{
		{Phase: "serial", Runtime: ours, Name: "StartContainer", Value: 2.5},
		{Phase: "serial", Runtime: ours, Name: "ExecSync", Value: 4.5},
		{Phase: "serial", Runtime: ours, Name: "pod ready", Value: 50},
		{Phase: "serial", Runtime: theirs, Name: "pod ready", Value: 100},
		{Phase: "serial", Runtime: alone, Name: "CNI ADD", Value: 30},
	} {
		b.samples.add(s)
	}

	var w bytes.Buffer
	b.verdicts(&w)
	for _, want := range []string{
		"| StartContainer | at most 3 ms | 2.50 ms | reached |",
		"| ExecSync | at most 3 ms | 4.50 ms | **missed by 1.50 ms** |",
		"| pod ready, against containerd | at least 3 × | 2.00 × | **missed by 1.00 ×** |",
		"| pod ready, beyond the plugins' own time | at most 12 ms | 20.0 ms | **missed by 8.00 ms** |",
	} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("want %s in:\n%s", want, w.String())
		}
	}

	if strings.Contains(w.String(), "CreateContainer") {
		t.Error("a verdict about what was not measured")
	}
}

// TestTelemetrySection compares what was measured in the same round.
func TestTelemetrySection(t *testing.T) {
	b := &bench{}
	for round, off := range []float64{20, 40, 100} {
		b.samples.add(Sample{telemetryPhase, silent, round, networked, "pod ready", off, "ms"})
		b.samples.add(Sample{telemetryPhase, told, round, networked, "pod ready", off * (1 + float64(round)/100), "ms"})
		b.samples.add(Sample{telemetryPhase, silent, round, networked, "PSS of the daemon", 30000, "KiB"})
		b.samples.add(Sample{telemetryPhase, told, round, networked, "PSS of the daemon", 37000, "KiB"})
	}

	var w bytes.Buffer
	b.telemetrySection(&w)
	b.verdicts(&w)
	for _, want := range []string{
		"| pod ready | 40.0 | 100 | 40.4 | 102 | +1.0 % (+0.0 – +2.0) |",
		"at most 2 % | 1.00 % | reached |",
		"at most 6144 KiB | 7000 KiB | **missed by 856 KiB** |",
	} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("want %s in:\n%s", want, w.String())
		}
	}
}

func TestReplaceReport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("before\n"+reportBegins+"old\n"+reportEnds+"after\n"), 0o644); err != nil {
		t.Fatal(err)
	}

	for range 2 {
		if err := replaceReport(path, []byte("new\n")); err != nil {
			t.Fatal(err)
		}
	}

	got, err := os.ReadFile(path)
	if want := "before\n" + reportBegins + "new\n" + reportEnds + "after\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v", got, err)
	}

	if err := os.WriteFile(path, []byte("no place"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := replaceReport(path, nil); err == nil {
		t.Error("a document without a place for it got a report")
	}
}

func TestChartsAreXML(t *testing.T) {
	b := sampled()
	b.samples.add(Sample{Phase: "growth", Runtime: ours, Load: 10, Name: "PSS", Value: 40000})
	b.samples.add(Sample{Phase: "growth", Runtime: ours, Load: 10, Name: "restart", Value: 0})
	b.samples.add(Sample{Phase: "serial", Runtime: theirs, Name: "CNI ADD", Value: 3})

	if got := len(b.charts()); got != 4 {
		t.Errorf("got %d charts, want those of calls, pods, memory and restarts", got)
	}
	for _, c := range b.charts() {
		name, chart := c.file, c.draw(b, c.title)
		d := xml.NewDecoder(bytes.NewReader(chart))
		var err error
		for err == nil {
			_, err = d.Token()
		}

		if !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(string(chart), "NaN") || strings.Contains(string(chart), "Inf") {
			t.Errorf("%s: not a number", name)
		}
	}
}
