package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crisp/test/testkit/tally"
)

const longRun = `{"Action":"output","Package":"a","Test":"TestFault/disk_full","Output":"it took 3s\n"}
{"Action":"fail","Package":"a","Test":"TestFault/disk_full"}
{"Action":"pass","Package":"a","Test":"TestFault/disk_gone"}
{"Action":"fail","Package":"a","Test":"TestFault"}
{"Action":"output","Package":"a","Test":"TestEarly","Output":"no daemon\n"}
{"Action":"fail","Package":"a","Test":"TestEarly"}
{"Action":"output","Package":"a","Output":"FAIL\n"}
{"Action":"output","Package":"a","Output":"FAIL\ta\t129.3s\n"}
{"Action":"fail","Package":"a"}
`

const brokenTest = `{"Action":"output","Package":"a","Test":"TestBroken","Output":"never right\n"}
{"Action":"fail","Package":"a","Test":"TestBroken"}
`

// TestAgain retries tests: one that failed, one that ended before its subtests
// ran, and one that fails again.
func TestAgain(t *testing.T) {
	script := filepath.Join(t.TempDir(), "go-test")
	err := os.WriteFile(script, []byte(`pass() { echo '{"Action":"pass","Package":"a","Test":"'"$1"'"}'; }
case $1 in
'-run=^TestFault$/^disk_full$') pass TestFault/disk_full; pass TestFault ;;
'-run=^TestEarly$') pass TestEarly/one; pass TestEarly/two; pass TestEarly ;;
*) echo '{"Action":"fail","Package":"a","Test":"TestBroken"}'; exit 1 ;;
esac
`), 0o755)
	if err != nil {
		t.Fatal(err)
	}

	s := stage{name: "faults", takes: time.Minute, args: []string{"sh", script, "-run=TestFault", "-skip=x"}}
	flaky := []string{"a TestEarly: no daemon", "a TestFault/disk_full: it took 3s"}
	for _, test := range []struct {
		run    string
		want   tally.Tally
		failed []string
	}{
		{longRun, tally.Tally{Passed: 4}, nil},
		{brokenTest + longRun, tally.Tally{Passed: 4, Failed: 1}, []string{"a TestBroken: never right"}},
	} {
		first := outcomes{}
		if err := first.read(strings.NewReader(test.run), t.Output()); err != nil {
			t.Fatal(err)
		}

		if err := s.again(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		if got := first.tally(); got != test.want {
			t.Errorf("got %v, want %v", got, test.want)
		}

		if got := first.flaky(); !slices.Equal(got, flaky) {
			t.Errorf("flaky: got %q, want %q", got, flaky)
		}
		if got := first.failed(); !slices.Equal(got, test.failed) {
			t.Errorf("failed: got %q, want %q", got, test.failed)
		}
	}
}

// TestNotAgain requires a stage in which most tests fail, or whose process died
// before all tests ran, to stay failed.
func TestNotAgain(t *testing.T) {
	s := stage{args: []string{"sh", "/there is no such script"}}
	many := outcomes{key{pkg: "a"}: {action: "fail", reason: "FAIL FAIL a 1s"}}
	for i := range maxAgain + 1 {
		many[key{"a", strings.Repeat("T", i+1)}] = outcome{action: "fail"}
	}
	died := outcomes{key{"a", "TestX"}: {action: "fail"}, key{pkg: "a"}: {action: "fail", reason: "panic: x FAIL a 1s"}}
	for first, want := range map[*outcomes]int{&many: maxAgain + 1, &died: 1} {
		if err := s.again(t.Context(), *first); err != nil || first.tally().Failed != want {
			t.Errorf("got %v, %v, want %d failures", first.tally(), err, want)
		}
	}
}
