package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// TestDependenciesHaveReasons requires a reason in docs/dependencies.md for
// each module that go.mod requires directly, and for no other.
func TestDependenciesHaveReasons(t *testing.T) {
	list := func(file, pattern string) []string {
		text, err := os.ReadFile(filepath.Join(top, file))
		if err != nil {
			t.Fatal(err)
		}

		var names []string
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			names = append(names, string(m[1]))
		}
		slices.Sort(names)
		return names
	}

	required := list("go.mod", `(?m)^\t(\S+) v\S+$`)
	explained := list(filepath.Join("docs", "dependencies.md"), `(?m)^\| (\S+\.\S+) \| \S.*\|$`)
	if len(required) < 10 || !slices.Equal(required, explained) {
		t.Errorf("go.mod requires %q, docs/dependencies.md explains %q", required, explained)
	}
}
