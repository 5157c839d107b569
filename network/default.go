package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
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
	conf, err := cni.Load(*n.confDir.Load())
	if !errors.Is(err, cni.ErrNoConfig) {
		return conf, err
	}
	if !n.options.Default {
		return nil, fmt.Errorf("%w: a network add-on has to install one, as crisp's own network is not used in its place (default_network)", err)
	}

	n.defaulting.Lock()
	defer n.defaulting.Unlock()
	path := n.defaultPath()
	conf, err = cni.LoadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return conf, err
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

func (n *Network) defaultPath() string { return filepath.Join(n.options.CacheDir, defaultFile) }

// writeDefault writes the default configuration for some subnets, unless it is there.
func (n *Network) writeDefault(subnets []netip.Prefix) error {
	text, err := own.Conflist(own.Choice{Subnets: subnets, DataDir: filepath.Join(n.options.CacheDir, "leases")})
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
// error is [ErrInvalid] if they are malformed.
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

	n.defaulting.Lock()
	defer n.defaulting.Unlock()
	if err := n.writeDefault(subnets); err != nil {
		return fmt.Errorf("set pod CIDR %q: %w", text, err)
	}
	return nil
}
