package host

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/kernels.md anew")

func TestTooOld(t *testing.T) {
	for release, old := range map[string]bool{
		"4.19.0": true, "5.4.0-150-generic": true, "5.13.19": true,
		"5.14.0-503.el9.x86_64": false, "5.15.0-100-generic": false, "6.1.0-13-cloud-amd64": false, "7.0.1": false,
	} {
		v, err := parseVersion(release)
		if err != nil {
			t.Fatal(err)
		}
		err = Facts{Kernel: v}.TooOld()
		if (err != nil) != old || old && !strings.Contains(err.Error(), release) {
			t.Errorf("Linux %s: %v, want an error: %v", release, err, old)
		}
	}

	custom, err := parseVersion("custom")
	if err == nil {
		t.Error("a release without numbers was parsed")
	}
	for _, unknown := range []Version{{}, custom} {
		if err := (Facts{Kernel: unknown}).TooOld(); err != nil {
			t.Errorf("unknown kernel: %v, want it tried", err)
		}
	}
}

func TestLacks(t *testing.T) {
	if got := (Facts{}).Lacks(); len(got) > 0 {
		t.Errorf("of an unknown kernel %d features are said to be missing", len(got))
	}

	count := map[string]int{}
	for _, release := range []string{"5.14.0", "6.1.0", "6.6.0", "6.12.0", "6.18.0"} {
		v, err := parseVersion(release)
		if err != nil {
			t.Fatal(err)
		}
		f := Facts{
			Kernel: v, CgroupV2: Yes, OverlayIDMap: answer(v.AtLeast(5, 19)), CloneDetached: answer(v.AtLeast(6, 15)), PidfdExit: answer(v.AtLeast(6, 15)),
		}
		for _, missing := range f.Lacks() {
			count[release]++
			if v.AtLeast(missing.Major, missing.Minor) {
				t.Errorf("Linux %s is said to lack %s, which it has since %d.%d", release, missing.Name, missing.Major, missing.Minor)
			}
		}
	}
	if all := len(Features()); count["5.14.0"] != all || count["6.18.0"] != 0 || count["6.1.0"] != all-2 || count["6.12.0"] != 3 {
		t.Errorf("missing by kernel: %v of %d", count, all)
	}
}

// TestKernelsPage compares docs/kernels.md with the table of features.
func TestKernelsPage(t *testing.T) {
	const path, begin, end = "../../docs/kernels.md", "<!-- features: begin -->\n", "<!-- features: end -->\n"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	head, rest, found := strings.Cut(string(data), begin)
	_, tail, foundEnd := strings.Cut(rest, end)
	if !found || !foundEnd {
		t.Fatalf("%s has no place for the table", path)
	}

	page := head + begin + featureTable() + end + tail
	if page == string(data) {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the features are; write it with go test ./runtime/host -update", path)
	}
	if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
}

func featureTable() string {
	var b strings.Builder
	b.WriteString("| feature | since Linux | without it | what is lost |\n|---|---|---|---|\n")
	for _, f := range Features() {
		instead, lost := f.Instead, f.Lost
		if instead == "" {
			instead = "—"
		}
		if lost == "" {
			lost = "nothing"
		}
		fmt.Fprintf(&b, "| %s | %d.%d | %s | %s |\n", f.Name, f.Major, f.Minor, instead, lost)
	}
	return b.String()
}
