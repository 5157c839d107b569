//go:build crash

package crash

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// hookKinds are the kinds of the hooks that containers of a scene can have.
var hookKinds = []string{"createRuntime", "createContainer", "poststart", "poststop"}

// defineHooks defines a hook of each kind, for containers that ask for them, and
// returns the configuration for it.
func (n *node) defineHooks(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, kind := range hookKinds {
		script := fmt.Sprintf(`id=$(sed 's/.*"id":"\([^"]*\)".*/\1/'); echo x >>%s/$id.%s`, n.hooked, kind)
		data, err := json.Marshal(map[string]any{
			"version": "1.0.0", "stages": []string{kind}, "when": map[string]any{"annotations": map[string]string{"^hooks$": "^on$"}},
			"hook": map[string]any{"path": "/bin/sh", "args": []string{"sh", "-c", script}, "env": []string{"PATH=/usr/bin:/bin"}},
		})
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, kind+".json"), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("hooks_dirs = [%q]", dir)
}

// addHooks has the scene's container ask for hooks.
func (s *scene) addHooks() { s.container.Annotations = map[string]string{"hooks": "on"} }

// wantHooks checks, when all containers are removed, that each for which a
// createRuntime hook has run got its poststop hook, once. If that hook itself
// was disturbed by an error it was not run; if both processes that know of it
// were killed it may run twice.
func (n *node) wantHooks(t *testing.T, a attempt) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.hooked, "*.createRuntime"))
	if err != nil {
		t.Fatal(err)
	}

	for _, f := range files {
		least, most := 1, 1
		switch {
		case a.way == killBoth:
			most = 2
		case a.way == fail && a.at.name == "before poststop hook":
			least = 0
		}

		data, _ := os.ReadFile(strings.TrimSuffix(f, "createRuntime") + "poststop") // missing if it has not run
		if got := strings.Count(string(data), "x\n"); got < least || got > most {
			t.Errorf("the poststop hook of a container ran %d times, want %d to %d", got, least, most)
		}
	}

	left, err := filepath.Glob(filepath.Join(n.hooked, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			t.Error(err)
		}
	}
}
