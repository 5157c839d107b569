package main

import (
	"bufio"
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestChosen(t *testing.T) {
	usual, later := []string{"check", "unit", "root", "seccomp", "conformance", "demo"}, time.Now().Add(time.Hour)
	long := []string{"crash", "faults", "soak", "storm", "fuzz", "vm", "node"}
	for _, c := range []struct {
		names []string
		until time.Time
		root  bool
		want  []string
		err   string
	}{
		{nil, time.Time{}, true, usual, ""},
		{nil, later, true, slices.Concat(usual, long), ""},
		{nil, later, false, []string{"check", "unit"}, ""},
		{[]string{"node", "unit"}, time.Time{}, true, []string{"unit", "node"}, ""},
		{[]string{"unit"}, time.Time{}, false, []string{"unit"}, ""},
		{[]string{"node"}, time.Time{}, false, nil, "stage node needs root"},
		{[]string{"unit", "conformance"}, time.Time{}, false, nil, "stage conformance needs root"},
		{[]string{"unit", "nodes"}, time.Time{}, true, nil, `unknown stage "nodes": choose from check, unit, root, `},
		{[]string{"nodes"}, time.Time{}, false, nil, "vm, node"},
	} {
		some, err := chosen(c.names, c.until, c.root)

		var got []string
		for _, s := range some {
			got = append(got, s.name)
		}

		if !slices.Equal(got, c.want) || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q as root %t: got %q, %v, want %q, %q", c.names, c.root, got, err, c.want, c.err)
		}
	}
}

func TestCompiledTakesNoNames(t *testing.T) {
	if some, err := choose(true, selection{}, []string{"node"}, time.Time{}); err == nil || !strings.Contains(err.Error(), `"node"`) {
		t.Errorf("got %v, %v, want an error that names the argument", some, err)
	}
}

// TestStageEndsWithItsPrograms ends a stage whose program has started another,
// which holds its output.
func TestStageEndsWithItsPrograms(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := stage{}.command(ctx, []string{"sh", "-c", "sleep 30 & echo ready; wait"})
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}

	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(pipe)
	if line, err := out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("got %q, %v", line, err)
	}

	began := time.Now()
	cancel()
	if _, err := io.ReadAll(out); err != nil {
		t.Error(err)
	}

	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("a child of the program kept running for %v", took)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the program ended well")
	}
}
