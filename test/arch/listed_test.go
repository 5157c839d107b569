package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// listed is a line of the tables that list packages.
var listed = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| [^ ].* \\|$")

// TestPackagesAreListed requires every package exactly once in the
// architecture's list, and no other.
func TestPackagesAreListed(t *testing.T) {
	const heading = "\n## The packages\n"
	text, err := os.ReadFile(filepath.Join(top, "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}

	_, list, ok := strings.Cut(string(text), heading)
	if !ok {
		t.Fatalf("docs/architecture.md has no heading %q", strings.TrimSpace(heading))
	}

	missing := map[string]bool{}
	for _, f := range sources(t) {
		missing[f.dir] = true
	}

	for _, m := range listed.FindAllStringSubmatch(list, -1) {
		if !missing[m[1]] {
			t.Errorf("docs/architecture.md lists %s, which is not a package, or is listed twice", m[1])
		}
		delete(missing, m[1])
	}

	for dir := range missing {
		t.Errorf("docs/architecture.md does not list %s", dir)
	}
}
