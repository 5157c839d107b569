package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cri/client"
	"crisp/cri/config"
	"crisp/network"
	"crisp/network/own"
	"crisp/runtime/untrusted"
)

// networkShowCommand is the command network show.
func networkShowCommand() *cobra.Command {
	format := ""
	cmd := cli.Configured(&cobra.Command{
		Use: "show [FLAGS] [POD]", Short: "List what is attached to crisp's own network",
		Args: cli.UpTo(1, "one pod"), DisableFlagsInUseLine: true,
	}, func(_ context.Context, cfg *config.Config, args []string, out io.Writer) error {
		return showNetwork(cfg, strings.Join(args, ""), format, out)
	})
	cmd.Flags().StringVarP(&format, "output", "o", "text", "the `FORMAT` of the output: text or json")
	return cmd
}

// showNetwork prints what is attached to crisp's own network, of one pod if it is
// named.
func showNetwork(cfg *config.Config, pod, format string, out io.Writer) error {
	if format != "text" && format != "json" {
		return fmt.Errorf("output format %q is neither text nor json", format)
	}

	var list []own.State
	err := withInspector(cfg, func(i *network.Inspector) error {
		var err error
		list, err = i.Show(pod)
		return err
	})
	if err != nil {
		return err
	}
	if pod != "" && len(list) == 0 {
		return fmt.Errorf("%w: no pod %s is attached to crisp's own network: name it NAMESPACE/NAME, NAME, or by the beginning of its ID", client.ErrNotFound, pod)
	}
	if format == "json" {
		return printJSON(out, list)
	}
	return printStates(out, list)
}

// withInspector runs f with an inspector of the network of a configuration.
func withInspector(cfg *config.Config, f func(*network.Inspector) error) error {
	i, err := network.Inspect(networkOptions(cfg))
	if err != nil {
		return err
	}
	return errors.Join(f(i), i.Close())
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// maxPodName bounds the name of a pod in a table, in bytes.
const maxPodName = 512

// printStates prints a table of attachments.
func printStates(out io.Writer, list []own.State) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "POD\tNETWORK\tMODE\tADDRESSES\tHOST INTERFACE\tHOST PORTS")

	for _, s := range list {
		name, addrs, host := s.ID, []string{}, s.HostInterface
		if s.Name != "" {
			name = untrusted.Of(s.Namespace + "/" + s.Name).Name(maxPodName)
		}
		for _, a := range s.Addresses {
			text := a.Address.String()
			if !a.Leased {
				text += " (no lease)"
			}
			addrs = append(addrs, text)
		}

		if !s.HostPresent {
			host += " (missing)"
		}

		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", name, s.Network, s.Mode, listed(addrs), host, listed(s.HostPorts))
	}
	return w.Flush()
}

// listed joins words, - for none.
func listed(words []string) string {
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, ", ")
}
