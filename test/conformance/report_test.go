package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crisp/test/testkit/tally"
)

func TestSkipList(t *testing.T) {
	skips, err := parseSkips(skipList)
	if err != nil {
		t.Fatal(err)
	}
	if len(skips) == 0 {
		t.Error("the skip list is empty")
	}
	for _, bad := range []string{"never x", "never # reason", "maybe x # reason", "may x #", "may ( # reason"} {
		if _, err := parseSkips(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	excuses, err := parseSkips("without:/proc x # reason\nwithout:/nowhere y # reason")
	if err != nil || len(excuses) != 1 || excuses[0].pattern.String() != "y" {
		t.Errorf("want an excuse for what is missing only, got %v, %v", excuses, err)
	}
}

const report = `[{"SpecReports": [
 {"LeafNodeType": "BeforeSuite", "State": "passed"},
 {"LeafNodeType": "It", "LeafNodeText": "works", "State": "passed"},
 {"LeafNodeType": "It", "LeafNodeText": "breaks", "State": "failed", "Failure": {"Message": "boom"}},
 {"LeafNodeType": "It", "LeafNodeText": "hangs", "State": "timedout"},
 {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[k8s.io] AppArmor"], "LeafNodeText": "confines", "State": "skipped"},
 {"LeafNodeType": "It", "LeafNodeText": "hides", "State": "skipped", "Failure": {"Message": "no such feature"}},
 {"LeafNodeType": "AfterSuite", "State": "failed"}
]}]`

func TestJudge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, []byte(report), 0o644); err != nil {
		t.Fatal(err)
	}
	specs, err := readReport(path)
	if err != nil {
		t.Fatal(err)
	}
	skips, err := parseSkips("may AppArmor # the kernel has none")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	got, err := judge(&out, specs, skips)
	if err != nil {
		t.Fatal(err)
	}
	if want := (tally.Tally{Passed: 1, Failed: 4, Skipped: 1}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, want := range []string{"FAIL breaks\n     failed: boom", "FAIL hides\n     skipped, but is not in the skip list: no such feature", "the kernel has none"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q in:\n%s", want, &out)
		}
	}
}

func TestJudgeWantsSpecs(t *testing.T) {
	if _, err := judge(io.Discard, nil, nil); err == nil {
		t.Error("an empty report was accepted")
	}
}
