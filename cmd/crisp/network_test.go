package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crisp/network/cni"
)

func TestNetworkInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	config := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	initWith := func(more ...string) (string, error) {
		var out strings.Builder
		err := run(t.Context(), append([]string{"network", "init", "--config", config, "--cni-conf-dir", dir}, more...), &out)
		return out.String(), err
	}

	for name, args := range map[string][]string{
		"mode": {"--mode", "magic"}, "subnet": {"--subnet", "10.1.0.0"}, "two subnets that overlap": {"--subnet", "10.1.0.0/16,10.1.1.0/24"}, "argument": {"x"},
	} {
		if out, err := initWith(args...); err == nil {
			t.Errorf("%s: printed %q", name, out)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("a refused command has made the directory")
	}

	out, err := initWith("--subnet", "10.44.0.0/24,fd44::/64", "--cluster", "10.0.0.0/8", "--mode", "bridge")
	if err != nil || !strings.Contains(out, "10.44.0.0/24") {
		t.Fatalf("printed %q, %v", out, err)
	}
	conf, err := cni.Load(dir)
	if err != nil || !conf.Declares("portMappings") || !strings.Contains(string(conf.Bytes()), `"nonMasqueradeCIDRs"`) {
		t.Errorf("configuration is %+v, %v", conf, err)
	}

	if out, err := initWith(); err == nil || !strings.Contains(err.Error(), networkFile) {
		t.Errorf("a second configuration: %q, %v", out, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	// Without a subnet, the node's routes are read.
	if out, err := initWith(); err != nil || !strings.Contains(out, "/16") && !strings.Contains(out, "/24") && !strings.Contains(out, "/64") {
		t.Errorf("printed %q, %v", out, err)
	}
}
