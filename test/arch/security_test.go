package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestSecurityNamesTests requires each test in docs/security.md to exist.
func TestSecurityNamesTests(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(top, "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}

	declared := map[string]bool{}
	declaration := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	for _, f := range sources(t) {
		if !f.test {
			continue
		}
		text, err := os.ReadFile(filepath.Join(top, f.path))
		if err != nil {
			t.Fatal(err)
		}

		for _, m := range declaration.FindAllSubmatch(text, -1) {
			declared[string(m[1])] = true
		}
	}

	named := regexp.MustCompile(`\bTest\w+`).FindAllString(string(doc), -1)
	if len(named) < 20 {
		t.Errorf("only %d tests are named", len(named))
	}

	for _, name := range named {
		if !declared[name] {
			t.Errorf("docs/security.md names %s, which is not a test", name)
		}
	}
}
