package specs

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crisp/test/testkit/tally"
)

func TestExcuses(t *testing.T) {
	for _, bad := range []string{"never x", "never # reason", "maybe x # reason", "may x #", "may ( # reason"} {
		if _, err := ParseExcuses(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}

	all, err := ParseExcuses("# a list\n\nnever:/proc x # reason\nnever:/nowhere y # reason\nmay z # reason\nnever v # reason")
	if err != nil {
		t.Fatal(err)
	}

	if got, want := all.LeftOut(), []string{"y", "v"}; !slices.Equal(got, want) {
		t.Errorf("left out are %v, want %v", got, want)
	}
	if _, ok := all.reason("x"); ok {
		t.Error("there is an excuse though the machine has what is needed")
	}
}

const report = `[{"SpecReports": [
 {"LeafNodeType": "BeforeSuite", "State": "passed"},
 {"LeafNodeType": "It", "LeafNodeText": "works", "State": "passed"},
 {"LeafNodeType": "It", "LeafNodeText": "breaks", "State": "failed", "Failure": {"Message": "boom"}},
 {"LeafNodeType": "It", "LeafNodeText": "hangs", "State": "timedout"},
 {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[k8s.io] AppArmor"], "LeafNodeText": "confines", "State": "skipped"},
 {"LeafNodeType": "It", "LeafNodeText": "hides", "State": "skipped", "Failure": {"Message": "no such feature"}},
 {"LeafNodeType": "It", "LeafNodeText": "is [Slow]", "State": "skipped"},
 {"LeafNodeType": "AfterSuite", "State": "failed"}
]}]`

func TestJudge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, []byte(report), 0o644); err != nil {
		t.Fatal(err)
	}

	specs, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}

	excuses, err := ParseExcuses("may AppArmor # the kernel has none")
	if err != nil {
		t.Fatal(err)
	}

	var out strings.Builder
	got, err := Judge(&out, specs, func(name string) bool { return !strings.Contains(name, "[Slow]") }, excuses)
	if err != nil {
		t.Fatal(err)
	}

	if want := (tally.Tally{Passed: 1, Failed: 4, Skipped: 1}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, want := range []string{"FAIL breaks\n     failed: boom", "FAIL hides\n     skipped, for which there is no excuse in the list: no such feature", "the kernel has none"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q in:\n%s", want, &out)
		}
	}
}

func TestJudgeWantsSpecs(t *testing.T) {
	if _, err := Judge(io.Discard, nil, nil, nil); err == nil {
		t.Error("an empty report was accepted")
	}
}
