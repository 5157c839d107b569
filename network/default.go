package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"crisp/network/cni"
	"crisp/network/own"
	"crisp/runtime/durable"
)

// defaultFile, in the cache directory, is the configuration that applies while the
// node has none. Its subnet is chosen once.
const defaultFile = "default.conflist"

// config returns the configuration for new pods: the node's, or else crisp's own.
func (n *Network) config() (*cni.Config, error) {
	conf, none := cni.Load(*n.confDir.Load())
	if !errors.Is(none, cni.ErrNoConfig) {
		return conf, none
	}
	if !n.options.Default {
		return nil, fmt.Errorf("%w: a network add-on has to install one, as crisp's own network is not used in its place (default_network)", none)
	}

	n.defaulting.Lock()
	defer n.defaulting.Unlock()
	path := n.defaultPath()
	if !n.adopted {
		if err := n.adoptDefault(path); err != nil {
			return nil, err
		}
		n.adopted = true
	}
	conf, err := cni.LoadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return conf, err
	}
	if len(n.options.Cluster) > 0 {
		return nil, fmt.Errorf("%w: crisp's own network waits for the node's part of %v (cluster_cidrs), which kubelet passes on once when the control plane has chosen it; if it has, restart kubelet", none, n.options.Cluster)
	}
	subnets, err := n.own.FreeSubnets()
	if err != nil {
		return nil, fmt.Errorf("choose a subnet for pods: %w", err)
	}
	if err := n.writeDefault(subnets); err != nil {
		return nil, err
	}
	return cni.LoadFile(path)
}

// adoptDefault brings the default configuration of an earlier daemon, if there is one, into
// line with the options. What is not part of the cluster is of no use in it.
func (n *Network) adoptDefault(path string) error {
	conf, err := cni.LoadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	plugins, err := conf.Plugins(own.Type)
	if err != nil {
		return err
	}
	if len(plugins) != 1 {
		return fmt.Errorf("%s: %w: %d plugins of type %s, and not one: remove the file", path, cni.ErrInvalidConfig, len(plugins), own.Type)
	}
	present, err := own.ChoiceOf(plugins[0])
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}

	switch {
	case n.outside(present.Subnets) != nil:
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove configuration of own network for another cluster: %w", err)
		}
		return nil
	case !slices.Equal(present.Direct, n.options.Cluster):
		return n.writeDefault(present.Subnets)
	}
	return nil
}

// outside is an error if a subnet is not part of the cluster.
func (n *Network) outside(subnets []netip.Prefix) error {
	for _, s := range subnets {
		within := func(c netip.Prefix) bool { return c.Bits() <= s.Bits() && c.Contains(s.Addr()) }
		if len(n.options.Cluster) > 0 && !slices.ContainsFunc(n.options.Cluster, within) {
			return fmt.Errorf("%w: %s is not part of %v (cluster_cidrs)", ErrInvalid, s, n.options.Cluster)
		}
	}
	return nil
}

func (n *Network) defaultPath() string { return filepath.Join(n.options.CacheDir, defaultFile) }

// writeDefault writes the default configuration for some subnets, unless it is there.
func (n *Network) writeDefault(subnets []netip.Prefix) error {
	text, err := own.Conflist(own.Choice{Subnets: subnets, Direct: n.options.Cluster, DataDir: n.options.leases()})
	if err != nil {
		return fmt.Errorf("configure own network: %w: %w", ErrInvalid, err)
	}
	if present, err := os.ReadFile(n.defaultPath()); err == nil && bytes.Equal(present, text) {
		return nil
	}
	if err := durable.WriteFile(n.defaultPath(), text, 0o600); err != nil {
		return fmt.Errorf("configure own network: %w", err)
	}
	return nil
}

// SetPodCIDR sets the subnets of new pods: one or two, separated by a comma, as kubelet
// passes them on. It matters only while the node has no network configuration and
// crisp's own is used; otherwise the add-on that installed one knows the subnets. The
// error is [ErrInvalid] if they are malformed, or no part of the cluster.
func (n *Network) SetPodCIDR(text string) error {
	if !n.options.Default || text == "" {
		return nil
	}
	var subnets []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		subnet, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return fmt.Errorf("set pod CIDR %q: %w: %w", text, ErrInvalid, err)
		}
		subnets = append(subnets, subnet)
	}
	if err := n.outside(subnets); err != nil {
		return fmt.Errorf("set pod CIDR %q: %w", text, err)
	}

	n.defaulting.Lock()
	defer n.defaulting.Unlock()
	if err := n.writeDefault(subnets); err != nil {
		return fmt.Errorf("set pod CIDR %q: %w", text, err)
	}
	return nil
}
