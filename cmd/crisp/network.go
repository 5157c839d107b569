package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cri/config"
	"crisp/network/cni"
	"crisp/network/own"
	"crisp/runtime/durable"
)

// networkFile is the name of the configuration that network init writes.
const networkFile = "10-crisp.conflist"

// networkCommand is the command network.
func networkCommand() *cobra.Command {
	return cli.Group("network", "Configure and inspect crisp's own network", networkInitCommand(), networkShowCommand(), networkCheckCommand())
}

// networkInitCommand is the command network init.
func networkInitCommand() *cobra.Command {
	choice := own.Choice{}
	cmd := cli.Configured(&cobra.Command{
		Use: "init [FLAGS]", Short: "Write a network configuration, unless there is one",
		Args: cli.Exactly(0, "no arguments"), DisableFlagsInUseLine: true,
	}, func(_ context.Context, cfg *config.Config, _ []string, out io.Writer) error {
		return initNetwork(cfg, choice, out)
	})

	fs := cmd.Flags()
	fs.Func("subnet", "the `CIDRS` of pods, at most one of each family; without it, one to which the node has no route", prefixes(&choice.Subnets))
	fs.Func("cluster", "`CIDRS` of all pods of the cluster, which are reached without masquerading", prefixes(&choice.Direct))
	fs.StringVar(&choice.Mode, "mode", own.ModeRouted, "the `MODE`: routed or bridge")
	return cmd
}

// prefixes parses a list of networks into a variable.
func prefixes(into *[]netip.Prefix) func(string) error {
	return func(text string) error {
		for part := range strings.SplitSeq(text, ",") {
			p, err := netip.ParsePrefix(strings.TrimSpace(part))
			if err != nil {
				return err
			}
			*into = append(*into, p)
		}
		return nil
	}
}

// initNetwork writes a network configuration, if the node has none.
func initNetwork(cfg *config.Config, choice own.Choice, out io.Writer) error {
	present, err := cni.Load(cfg.CNIConfDir)
	if err == nil {
		return fmt.Errorf("%s is the node's network configuration: remove it first", present.File)
	}
	if !errors.Is(err, cni.ErrNoConfig) {
		return err
	}

	if len(choice.Subnets) == 0 {
		if choice.Subnets, err = freeSubnets(); err != nil {
			return err
		}
	}
	text, err := own.Conflist(choice)
	if err != nil {
		return fmt.Errorf("configure network: %w", err)
	}

	if err := os.MkdirAll(cfg.CNIConfDir, 0o755); err != nil {
		return fmt.Errorf("configure network: %w", err)
	}
	path := filepath.Join(cfg.CNIConfDir, networkFile)
	if err := durable.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("configure network: %w", err)
	}
	_, err = fmt.Fprintf(out, "Wrote %s, which new pods use:\n%s", path, text)
	return err
}

// freeSubnets returns a subnet to which this node has no route.
func freeSubnets() ([]netip.Prefix, error) {
	plugin, err := own.Open(false)
	if err != nil {
		return nil, err
	}
	subnets, err := plugin.FreeSubnets()
	return subnets, errors.Join(err, plugin.Close())
}
