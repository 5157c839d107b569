package main

import (
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestEnvironment(t *testing.T) {
	got := strings.Split(environment(options{scale: 10, only: `^runtime/\w+$|a "b"`, tests: "^TestX$/^a", long: true}), "\n")
	for _, want := range []string{`CRISP_VM_ONLY='^runtime/\w+$|a "b"'`, "CRISP_VM_RUN='^TestX$/^a'", "CRISP_VM_LONG=true", "CRISP_TIME_SCALE=10"} {
		if !slices.Contains(got, want) {
			t.Errorf("want line %q in %q", want, got)
		}
	}
}

// TestMissingPrograms requires the machine to be told about programs that it does not
// have, or that only one of this computer's architecture has.
func TestMissingPrograms(t *testing.T) {
	own, err := findArch(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		a    arch
		want string
	}{{own, "CRISP_LACKS=prometheus"}, {other(t), "CRISP_LACKS=prometheus,nvidia-cdi-hook"}} {
		if got := strings.Split(environment(options{arch: test.a}), "\n"); !slices.Contains(got, test.want) {
			t.Errorf("%s: want line %q in %q", test.a.name, test.want, got)
		}
	}
}

// TestPatternsRefused requires that a pattern is refused if it would end its
// line, or its quotes, in the environment.
func TestPatternsRefused(t *testing.T) {
	for _, pattern := range []string{"a'b", "a\nCRISP_VM_LONG=true", "a("} {
		for name, o := range map[string]options{"-only": {only: pattern}, "-run": {tests: pattern}} {
			if _, err := run(t.Context(), o); err == nil || !strings.HasPrefix(err.Error(), name+": ") {
				t.Errorf("%s %q: got %v, want an error about that", name, pattern, err)
			}
		}
	}
}

// TestCompilesWhatRuns requires the tests of a package to be compiled if one of
// its suites is selected, and those alone.
func TestCompilesWhatRuns(t *testing.T) {
	for _, test := range []struct {
		o    options
		pkg  string
		want bool
	}{
		{options{}, "runtime/cgroup", true},
		{options{only: "^test/e2e$"}, "test/e2e", true},
		{options{only: "^test/e2e/systemd$"}, "test/e2e", true},
		{options{only: "^test/e2e$"}, "test/systemd", false},
		{options{only: "critest"}, "runtime/cgroup", false},
		{options{only: "test/selinux", selinux: true}, "test/systemd", true},
		{options{only: "systemd", node: true}, "test/node", true},
	} {
		if got := test.o.chooses(test.pkg); got != test.want {
			t.Errorf("-only %q compiles %s: %t, want %t", test.o.only, test.pkg, got, test.want)
		}
	}
}
