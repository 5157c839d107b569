package cni

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crisp/test/testkit"
)

// TestPluginsInheritNothing runs a plugin that answers with its own state, from a
// process on one CPU that is nicer than others and has an umask of its own.
func TestPluginsInheritNothing(t *testing.T) {
	const where = "CRISP_TEST_PLUGIN"
	if plugin := os.Getenv(where); plugin != "" {
		r := &runner{run: runGroup, calls: &calls{}}
		answer, err := r.ExecPlugin(t.Context(), plugin, nil, os.Environ())
		if err != nil {
			t.Fatal(err)
		}

		if err := os.WriteFile(plugin+".answer", answer, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}

	testkit.Root(t)
	for _, tool := range []string{"taskset", "nice"} {
		if _, err := exec.LookPath(tool); err != nil {
			testkit.Skip(t, tool, err.Error())
		}
	}

	plugin := filepath.Join(t.TempDir(), "plugin")
	const script = "#!/bin/sh\ngrep Cpus_allowed_list /proc/self/status | tr -d '\\t'; nice; umask; pwd; echo $NOTIFY_SOCKET.$CNI_COMMAND\n"
	if err := os.WriteFile(plugin, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}

	cmd := exec.Command("taskset", "-c", "0", "nice", "-n", "7", "sh", "-c", "umask 077; exec "+self+" -test.run='^TestPluginsInheritNothing$'")
	cmd.Env = append(os.Environ(), where+"="+plugin, "NOTIFY_SOCKET=/run/systemd/notify", "CNI_COMMAND=ADD")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	got, err := os.ReadFile(plugin + ".answer")
	if err != nil {
		t.Fatal(err)
	}

	cpus, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		t.Fatal(err)
	}
	if want := "Cpus_allowed_list:" + strings.TrimSpace(string(cpus)) + "\n0\n0022\n/\n.ADD\n"; string(got) != want {
		t.Errorf("the plugin has %q, want %q", got, want)
	}
}
