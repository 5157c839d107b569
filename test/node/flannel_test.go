//go:build node

package node

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"crisp/network/own"
	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// TestFlannel connects two nodes by flannel, whose plugin delegates to the reference
// plugin on one, and on the other to crisp's as a program.
func TestFlannel(t *testing.T) {
	p := newPair(t, "default_network = false\n", flannelPlugins(t))
	files := [2]string{}
	for i, n := range p.nodes {
		file, process, err := n.StartFlannel(t.Context(), t.TempDir())
		if process != nil {
			t.Cleanup(func() {
				err := errors.Join(process.Stop(), n.RemoveFlannel(context.WithoutCancel(t.Context())))
				if err != nil {
					t.Errorf("stop flannel: %v", err)
				}
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		files[i] = file
	}

	// portmap is a plugin of its own, which crisp-net needs not.
	mapped := map[string]bool{"portMappings": true}
	chains := [2][]map[string]any{
		{{"delegate": map[string]any{"bridge": p.nodes[0].Lab.Bridge(), "hairpinMode": true, "isDefaultGateway": true}}, {"type": "portmap", "capabilities": mapped}},
		{{"delegate": map[string]any{"type": own.Type, "mode": own.ModeRouted}, "capabilities": mapped}},
	}
	// The reference plugin adds default routes by isDefaultGateway.
	routes := [2][]map[string]string{{}, {{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}}
	for i, n := range p.nodes {
		flannel := chains[i][0]
		flannel["type"], flannel["subnetFile"], flannel["dataDir"] = "flannel", files[i], filepath.Join(n.Lab.Dir, "flannel")
		flannel["ipam"] = map[string]any{"dataDir": n.Lab.IPAM(), "routes": routes[i]}
		if err := n.Lab.Configure(map[string]any{"cniVersion": "0.4.0", "name": "cbr0", "plugins": chains[i]}); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("pods", func(t *testing.T) { p.try(p.space(t), func(*space) {}) })
	p.empty(t)
	p.gone(&space{t, p.world, "default"})
}

// flannelPlugins are the directories of its plugin and of crisp's.
func flannelPlugins(t *testing.T) string {
	t.Helper()
	testkit.Root(t)
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}
	flannel, err := cache.Flannel()
	if err != nil {
		testkit.Skip(t, "flannel", err.Error())
	}
	crisp, err := cache.Crisp()
	if err != nil {
		testkit.Skip(t, "the build", err.Error())
	}
	return flannel + "," + filepath.Dir(crisp)
}
