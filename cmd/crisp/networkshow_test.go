package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crisp/network/own"
	"crisp/test/testkit"
)

// TestNetworkShow calls the command on a node without pods.
func TestNetworkShow(t *testing.T) {
	testkit.Root(t)
	config := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	show := func(more ...string) (string, error) {
		var out strings.Builder
		err := run(t.Context(), append([]string{"network", "show"}, append(more, "--config", config, "--root", t.TempDir())...), &out)
		return out.String(), err
	}

	if out, err := show(); err != nil || !strings.HasPrefix(out, "POD ") || strings.Count(out, "\n") != 1 {
		t.Errorf("printed %q, %v", out, err)
	}
	if out, err := show("-o", "json"); err != nil || out != "[]\n" {
		t.Errorf("printed %q, %v", out, err)
	}
	if out, err := show("-o", "yaml"); err == nil {
		t.Errorf("an unknown format: %q", out)
	}
	if out, err := show("default/web", "-o", "json"); err == nil || !strings.Contains(err.Error(), "default/web") {
		t.Errorf("a pod that does not exist: %q, %v", out, err)
	}
}

// TestPrintStates prints what is missing of an attachment.
func TestPrintStates(t *testing.T) {
	var out strings.Builder
	err := printStates(&out, []own.State{
		{ID: "1234", Network: "crisp", Mode: "routed", HostInterface: "veth1", Addresses: []own.Address{{Address: netip.MustParseAddr("10.0.0.2")}}},
		{ID: "9abc", Namespace: "default", Name: "e\x1b[31m\nvil", HostInterface: "veth3", HostPresent: true},
		{ID: "5678", Namespace: "default", Name: "web", HostInterface: "veth2", HostPresent: true, HostPorts: []string{"tcp *:1 > 10.0.0.3:2", "tcp *:3 > 10.0.0.3:4"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1234 ", "10.0.0.2 (no lease)", "veth1 (missing)", "default/web ", `default/e\u001b[31m\u000avil `, "veth2  ", "tcp *:1 > 10.0.0.3:2, tcp *:3 > 10.0.0.3:4"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}
