package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crisp/network/own"
	"crisp/test/testkit"
)

// TestNetworkCheck calls the command on a node without pods: with a configuration that is
// in order, with one that is not, and without any.
func TestNetworkCheck(t *testing.T) {
	testkit.Root(t)
	config, confs, root := filepath.Join(t.TempDir(), "config.toml"), t.TempDir(), t.TempDir()
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(more ...string) (string, error) {
		var out strings.Builder
		err := run(t.Context(), append([]string{"network", "check", "--config", config, "--root", root, "--cni-conf-dir", confs}, more...), &out)
		return out.String(), err
	}

	if out, err := check("-o", "json"); err != nil || !json.Valid([]byte(out)) || strings.Contains(out, "configuration") {
		t.Errorf("without a configuration: %q, %v", out, err)
	}
	// Reserved for documentation: no route of the node collides.
	conf := filepath.Join(confs, "10-test.conflist")
	text := `{"cniVersion":"1.1.0","name":"test","plugins":[{"type":"crisp-net","ipam":{"type":"host-local","subnet":"198.51.100.0/24","dataDir":"` + root + `"}}]}`
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _ := check(); !strings.Contains(out, "OK    configuration: "+conf+" has the network test\n") {
		t.Errorf("with a configuration: %q", out)
	}

	if err := os.WriteFile(conf, []byte(strings.Replace(text, "ipam", "ipma", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := check()
	if !errors.Is(err, networkBroken) || !strings.Contains(out, "FAIL  configuration: ") || !strings.Contains(out, "ipma") || !strings.Contains(out, "; what to do: ") {
		t.Errorf("with an unknown field: %q, %v", out, err)
	}
	for _, args := range [][]string{{"-o", "yaml"}, {"pod"}} {
		if out, err := check(args...); err == nil || errors.Is(err, networkBroken) {
			t.Errorf("%q: %q, %v", args, out, err)
		}
	}
}

// TestBroken tells failures from warnings, and from what was repaired.
func TestBroken(t *testing.T) {
	for _, test := range []struct {
		finding own.Finding
		broken  bool
	}{
		{own.Finding{Level: own.LevelOK}, false},
		{own.Finding{Level: own.LevelWarn}, false},
		{own.Finding{Level: own.LevelFail}, true},
		{own.Finding{Level: own.LevelFail, Repaired: true}, false},
	} {
		if got := broken([]own.Finding{{Level: own.LevelOK}, test.finding}); got != test.broken {
			t.Errorf("%+v: %v", test.finding, got)
		}
	}
}
