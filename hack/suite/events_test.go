package main

import (
	"io"
	"slices"
	"strings"
	"testing"

	"crisp/test/testkit/tally"
)

const unitRun = `{"Action":"start","Package":"a"}
{"Action":"output","Package":"a","Test":"TestTable/x","Output":"x is wrong\n"}
{"Action":"fail","Package":"a","Test":"TestTable/x"}
{"Action":"pass","Package":"a","Test":"TestTable/y"}
{"Action":"fail","Package":"a","Test":"TestTable"}
{"Action":"skip","Package":"a","Test":"TestRoot"}
{"Action":"output","Package":"a","Test":"TestLinks","Output":"=== RUN   TestLinks\n"}
{"Action":"output","Package":"a","Test":"TestLinks","Output":"    gate.go:37: selinux is missing: no policy\n"}
{"Action":"output","Package":"a","Test":"TestLinks","Output":"--- SKIP: TestLinks (0.00s)\n"}
{"Action":"skip","Package":"a","Test":"TestLinks"}
{"Action":"pass","Package":"a","Test":"TestPlain","Elapsed":31.4}
{"Action":"fail","Package":"a"}
{"Action":"skip","Package":"empty"}
{"ImportPath":"broken","Action":"build-output","Output":"syntax error\n"}
{"ImportPath":"broken","Action":"build-fail"}
{"Action":"fail","Package":"broken"}
{"Action":"pass","Package":"died","Test":"TestBefore"}
{"Action":"fail","Package":"died"}
`

const rootRun = `{"Action":"pass","Package":"a","Test":"TestRoot"}
{"Action":"pass","Package":"a","Test":"TestTable/x"}
{"Action":"pass","Package":"a","Test":"TestTable"}
{"Action":"pass","Package":"a"}
`

func TestOutcomes(t *testing.T) {
	var said strings.Builder
	all := outcomes{}
	if err := all.read(strings.NewReader(unitRun), &said); err != nil {
		t.Fatal(err)
	}

	// x failed, package broken did not compile, package died ended by itself.
	if got, want := all.tally(), (tally.Tally{Passed: 3, Failed: 3, Skipped: 2}); got != want {
		t.Errorf("unit run: got %v, want %v", got, want)
	}

	for _, want := range []string{"x is wrong", "syntax error", "ok a TestPlain, after 31 s\n"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("want %q in what is said:\n%s", want, &said)
		}
	}

	more := outcomes{}
	if err := more.read(strings.NewReader(rootRun), io.Discard); err != nil {
		t.Fatal(err)
	}

	all.merge(more)
	if got, want := all.tally(), (tally.Tally{Passed: 4, Failed: 3, Skipped: 1}); got != want {
		t.Errorf("both runs: got %v, want %v", got, want)
	}
	if got, want := all.skipped(), []string{"a TestLinks: gate.go:37: selinux is missing: no policy"}; !slices.Equal(got, want) {
		t.Errorf("skipped: got %q, want %q", got, want)
	}
}

func TestOutcomesRefuseOtherText(t *testing.T) {
	if err := (outcomes{}).read(strings.NewReader("go: no such module\n"), io.Discard); err == nil {
		t.Error("text that is not events was accepted")
	}
}
