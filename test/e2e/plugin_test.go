package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// plugin wraps the bridge plugin: it records its calls, and misbehaves on
// request.
type plugin struct{ dir string }

const pluginScript = `#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID" >> %[1]s/calls
[ -e %[1]s/fail-$CNI_COMMAND ] && { echo '{"code": 100, "msg": "the plugin fails on request"}'; exit 1; }
[ -e %[1]s/hold-$CNI_COMMAND ] && echo "waiting for somebody" >&2
while [ -e %[1]s/hold-$CNI_COMMAND ]; do sleep 0.02; done
exec %[2]s/bridge
`

func newPlugin(t *testing.T) plugin {
	t.Helper()
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}

	real, err := cache.Plugins()
	if err != nil {
		testkit.Skip(t, "the build", err.Error())
	}

	p := plugin{t.TempDir()}
	script := fmt.Appendf(nil, pluginScript, p.dir, real)
	if err := os.WriteFile(filepath.Join(p.dir, "bridge"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// set makes the plugin hold or fail a command, as in "hold-ADD".
func (p plugin) set(t *testing.T, what string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, what), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.clear(what) })
}

// clear makes it work again.
func (p plugin) clear(what string) { _ = os.Remove(filepath.Join(p.dir, what)) }

// calls counts the calls with a command.
func (p plugin) calls(command string) int {
	return strings.Count("\n"+slurp(filepath.Join(p.dir, "calls")), "\n"+command+" ")
}
