package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	b := &bench{targets: []*target{{name: ours}, {name: theirs}}}
	for _, s := range []Sample{
		{Phase: "p", Runtime: ours, Name: "call", Value: 2, Unit: "ms"},
		{Phase: "p", Runtime: theirs, Name: "call", Value: 5, Unit: "ms"},
		{Phase: "p", Runtime: ours, Name: "throughput", Value: 300, Unit: "MB/s"},
		{Phase: "p", Runtime: theirs, Name: "throughput", Value: 150, Unit: "MB/s"},
		{Phase: "p", Runtime: ours, Name: "growth", Value: 1, Unit: "%"},
		{Phase: "p", Runtime: theirs, Name: "growth", Value: 2, Unit: "%"},
		{Phase: "p", Runtime: alone, Name: "floor", Value: 1, Unit: "ms"},
	} {
		b.samples.add(s)
	}

	// The own network has columns where it was measured.
	for runtime, value := range map[string]float64{ours: 4, theirs: 8, oursOwn: 1, alone: 3} {
		b.samples.add(Sample{Phase: "q", Runtime: runtime, Name: "CNI ADD", Value: value, Unit: "ms"})
	}
	b.samples.add(Sample{Phase: "q", Runtime: ownAlone, Name: "CNI ADD", Value: 0.5, Unit: "ms"})

	var w bytes.Buffer
	b.table(&w, b.samples.keys("p"))
	b.table(&w, b.samples.keys("q"))
	for _, want := range []string{
		"| call | 2.00 | 2.00 | 5.00 | 5.00 | 2.5 (2.5 – 2.5) |",
		"| throughput, MB/s | 300 | 300 | 150 | 150 | 2.0 (2.0 – 2.0) |",
		"| growth, % | 1.00 | 1.00 | 2.00 | 2.00 |  |",
		"| CNI ADD | 4.00 | 4.00 | 1.00 | 1.00 | 8.00 | 8.00 | 2.0 (2.0 – 2.0) |",
		"| CNI ADD (plugins alone) | 3.00 | 3.00 | 0.50 | 0.50 | | | |",
		"| floor (plugins alone) | 1.00 | 1.00 |  |  |  |",
	} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("want %s in:\n%s", want, w.String())
		}
	}
}

func TestStartsSection(t *testing.T) {
	b := &bench{}
	for round, v := range []float64{10, 20} {
		b.samples.add(Sample{Phase: bundlePhase, Runtime: "crisp run", Round: round, Name: ranBundle, Value: 10, Unit: "ms"})
		b.samples.add(Sample{Phase: bundlePhase, Runtime: "runc run", Round: round, Name: ranBundle, Value: v * 3, Unit: "ms"})
	}

	b.note(bundlePhase, "crun run does not work here: no.")
	b.note(bundlePhase, "crun run does not work here: no.")
	var w bytes.Buffer
	b.startsSection(&w)

	for _, want := range []string{"| crisp run | 10.0 | 10.0 |  |", "| runc run | 30.0 | 60.0 | 3.0 (3.0 – 6.0) |"} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("want %s in:\n%s", want, w.String())
		}
	}

	if strings.Count(w.String(), "- crun") != 1 {
		t.Errorf("want one note in:\n%s", w.String())
	}
}
