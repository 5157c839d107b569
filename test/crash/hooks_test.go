//go:build crash

package crash

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crisp/runtime/keeper/client"
)

// hookKinds are the kinds of the hooks that containers of a scene can have.
var hookKinds = []string{"createRuntime", "createContainer", "poststart", "poststop"}

// defineHooks defines a hook of each kind, for containers that ask for them, and
// returns the configuration for it.
func (n *node) defineHooks(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, kind := range hookKinds {
		script := fmt.Sprintf(`id=$(sed 's/.*"id":"\([^"]*\)".*/\1/'); cd %s; echo x >>$id.%s; while [ -e slow.%[2]s ]; do sleep 0.02; done`, n.hooked, kind)
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

		if got := times(strings.TrimSuffix(f, "createRuntime") + "poststop"); got < least || got > most {
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

// TestHookEndsUnwatched has a poststop hook end after the next daemon has
// connected to the keeper, and before that daemon waits for the hook. It must
// not run again.
func TestHookEndsUnwatched(t *testing.T) {
	n := newNode(t)
	s := n.newScene(t)
	defer n.tidy(t, s)
	s.addHooks()
	s.run()
	s.create()
	s.start()

	slow := filepath.Join(n.hooked, "slow.poststop")
	s.must("slow the hook down", os.WriteFile(slow, nil, 0o644))
	s.must("stop the container", s.tryStop())
	ran := filepath.Join(n.hooked, s.containerID+".poststop")
	s.await("the hook begins", func() bool { return times(ran) == 1 })
	n.Kill()
	n.give(t, order{"wait", point{1, "before poststop hook"}})
	defer n.release(t)
	n.begin(t)
	s.await("the next daemon is about to wait for the hook", func() bool { return n.obeyed(t) })

	s.must("let the hook end", os.Remove(slow))
	s.await("the hook has ended", func() bool { return !n.heldRunning(t, s.containerID+"-poststop-") })
	time.Sleep(sendTime) // so that the daemon has noticed
	n.release(t)
	s.must("remove the container", s.tryRemove())
	if got := times(ran); got != 1 {
		t.Errorf("the hook ran %d times, want 1", got)
	}
}

// times is how often a hook has noted that it ran.
func times(file string) int {
	data, _ := os.ReadFile(file) // missing if it has not
	return strings.Count(string(data), "x\n")
}

// heldRunning reports whether the keeper holds a running process whose ID has a
// prefix.
func (n *node) heldRunning(t *testing.T, prefix string) bool {
	t.Helper()
	c, err := client.Connect(t.Context(), filepath.Join(n.Dir, "state"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	entries, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	runs := false
	for _, e := range entries {
		runs = runs || strings.HasPrefix(e.ID, prefix) && e.Exit == nil
		e.Close()
	}
	return runs
}
