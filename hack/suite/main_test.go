package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestChosen(t *testing.T) {
	usual, later := []string{"check", "unit", "root", "seccomp", "conformance", "demo"}, time.Now().Add(time.Hour)
	long := []string{"crash", "faults", "soak", "storm", "vm", "node"}
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
		{[]string{"unit", "nodes"}, time.Time{}, true, nil, `there is no stage "nodes", but check, unit, root, `},
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
