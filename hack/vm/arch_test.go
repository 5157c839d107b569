package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// other is an architecture that this machine does not have.
func other(t *testing.T) arch {
	t.Helper()
	for _, a := range arches() {
		if a.name != runtime.GOARCH {
			return a
		}
	}
	t.Fatal("there is only one")
	return arch{}
}

// TestDisks requires that making one disk removes no other: outdated ones are
// found by how their names begin.
func TestDisks(t *testing.T) {
	var all []string
	for _, a := range arches() {
		for _, r := range releases() {
			all = append(all, r.disk(a))
			if a.name == "arm64" {
				r.bigPages = true
				all = append(all, r.disk(a))
			}
		}
	}
	for i, one := range all {
		for j, two := range all {
			if i != j && strings.HasPrefix(two, one) {
				t.Errorf("%s… would remove %s…", one, two)
			}
		}
	}
}

// TestBaseKey requires a disk for each architecture.
func TestBaseKey(t *testing.T) {
	keys := map[string]string{}
	for _, a := range arches() {
		key, err := baseKey(a, releases()[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		if same, ok := keys[key]; ok {
			t.Errorf("%s and %s have the same key", same, a.name)
		}
		keys[key] = a.name
	}
}

func TestSource(t *testing.T) {
	own, err := findArch(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	a := other(t)

	for _, test := range []struct {
		arch       arch
		name, want string
	}{
		{own, "bin", "bin"},
		{own, ".cache/cni", ".cache/cni"},
		{a, "bin", ".cache/" + a.name + "/programs"},
		{a, ".cache/cni", ".cache/" + a.name + "/cni"},
		{a, ".cache/bin/crictl", ".cache/" + a.name + "/bin/crictl"},
		{a, "test", "test"},
	} {
		if got := source(test.arch, test.name); got != filepath.FromSlash(test.want) {
			t.Errorf("%s for %s comes from %s, want %s", test.name, test.arch.name, got, test.want)
		}
	}
}

// TestTerminal requires that the tests' unit writes to the machine's terminal.
func TestTerminal(t *testing.T) {
	for _, a := range arches() {
		dir := filepath.Join(t.TempDir(), "guest")
		if err := writeGuest(dir, a, nil); err != nil {
			t.Fatal(err)
		}
		if unit := read(t, filepath.Join(dir, "crisp-tests.service")); !strings.Contains(unit, "TTYPath=/dev/"+a.tests+"\n") {
			t.Errorf("the unit for %s does not write to %s", a.name, a.tests)
		}
	}
}

func TestFindArch(t *testing.T) {
	if _, err := findArch("s390x"); err == nil || !strings.Contains(err.Error(), "arm64") {
		t.Errorf("got %v, want an error that names what there is", err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
