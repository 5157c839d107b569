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
{"Action":"output","Package":"a","Test":"TestBroken","Output":"never right\n"}
{"Action":"fail","Package":"a","Test":"TestBroken"}
{"Action":"output","Package":"a","Output":"FAIL\n"}
{"Action":"output","Package":"a","Output":"FAIL\ta\t129.3s\n"}
{"Action":"fail","Package":"a"}
`

// TestAgain gives two tests a second try, of which one passes.
func TestAgain(t *testing.T) {
	script := filepath.Join(t.TempDir(), "go-test")
	err := os.WriteFile(script, []byte(`case $1 in
'-run=^TestFault$/^disk_full$') echo '{"Action":"pass","Package":"a","Test":"TestFault/disk_full"}' ;;
*) echo '{"Action":"fail","Package":"a","Test":"TestBroken"}'; exit 1 ;;
esac
`), 0o755)
	if err != nil {
		t.Fatal(err)
	}
	first := outcomes{}
	if err := first.read(strings.NewReader(longRun), t.Output()); err != nil {
		t.Fatal(err)
	}
	s := stage{name: "faults", takes: time.Minute, args: []string{"sh", script, "-run=TestFault", "-skip=x"}}
	if err := s.again(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if got, want := first.tally(), (tally.Tally{Passed: 2, Failed: 1}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := first.unsteady(), []string{"a TestFault/disk_full: it took 3s"}; !slices.Equal(got, want) {
		t.Errorf("unsteady: got %q, want %q", got, want)
	}
	if got, want := first.failed(), []string{"a TestBroken: never right"}; !slices.Equal(got, want) {
		t.Errorf("failed: got %q, want %q", got, want)
	}
}

// TestNotAgain wants a stage that fails throughout, or whose process died
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
