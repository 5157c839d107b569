package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"crisp/image/registry"
)

const (
	// maxRegistries bounds the registries that are asked, reachTime the time for all.
	maxRegistries = 20
	reachTime     = 30 * time.Second
)

// registries asks the registries that are configured, and those of the node's images,
// at the same time.
func registries(ctx context.Context, n *Node) []Finding {
	var hosts []string
	for _, dir := range n.Config.RegistryConfigDirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // usual: there need not be one
		}
		for _, e := range entries {
			if host := hostOf(e.Name()); host != "" {
				hosts = append(hosts, host)
			}
		}
	}
	if state, err := n.now(); err == nil {
		hosts = append(hosts, state.Registries...)
	}
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	if len(hosts) == 0 {
		return []Finding{ok("none is configured, and there are no images")}
	}

	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	c := registry.New(registry.Options{ConfigDirs: n.Config.RegistryConfigDirs, UserAgent: "crisp-doctor"})
	asked := hosts[:min(len(hosts), maxRegistries)]
	found := make([][]Finding, len(asked))
	var wg sync.WaitGroup
	for i, host := range asked {
		wg.Go(func() { found[i] = reach(ctx, c, host) })
	}
	wg.Wait()
	if more := len(hosts) - len(asked); more > 0 {
		found = append(found, []Finding{ok("%d more registries were not asked", more)})
	}
	return slices.Concat(found...)
}

// hostOf is the registry that a directory is for, "" if it is for none: "HOST", "HOST:PORT",
// or "HOST_PORT_".
func hostOf(dir string) string {
	if strings.HasPrefix(dir, "_") || strings.HasPrefix(dir, ".") {
		return ""
	}
	if name, ok := strings.CutSuffix(dir, "_"); ok {
		if i := strings.LastIndexByte(name, '_'); i > 0 {
			return name[:i] + ":" + name[i+1:]
		}
	}
	return dir
}

// reach says whether the hosts of a registry answer.
func reach(ctx context.Context, c *registry.Client, host string) []Finding {
	pings, err := c.Ping(ctx, host)
	if errors.Is(err, registry.ErrInvalidReference) {
		return nil // a directory of something else
	}
	if err != nil {
		return []Finding{fail("correct its hosts.toml", "images of %s cannot be pulled: %v", host, err)}
	}

	var answer, silent []string
	for _, p := range pings {
		if p.Err == nil {
			answer = append(answer, p.URL)
		} else {
			silent = append(silent, fmt.Sprintf("%s: %v", p.URL, p.Err))
		}
	}
	const todo = "check name resolution, routes, proxies and certificates; a node without registries gets images by crisp images import"
	switch {
	case len(answer) == 0:
		return []Finding{warn(todo, "no host of %s answers: %s", host, strings.Join(silent, "; "))}
	case len(silent) > 0:
		return []Finding{warn(todo, "of %s only %s answers: %s", host, strings.Join(answer, ", "), strings.Join(silent, "; "))}
	}
	return []Finding{ok("%s answers (%s)", host, strings.Join(answer, ", "))}
}
