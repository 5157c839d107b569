package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cri/config"
	"crisp/network"
	"crisp/network/own"
)

// networkBroken is the exit code of a check that leaves failures. One that could not be
// done has another.
const networkBroken exitCode = 2

// networkCheckCommand is the command network check.
func networkCheckCommand() *cobra.Command {
	how, format := network.Check{}, ""
	cmd := cli.Configured(&cobra.Command{
		Use: "check [FLAGS]", Short: "Examine the node's network, and repair crisp's own",
		Args: cli.Exactly(0, "no arguments"), DisableFlagsInUseLine: true,
	}, func(ctx context.Context, cfg *config.Config, _ []string, out io.Writer) error {
		return checkNetwork(ctx, cfg, how, format, out)
	})

	fs := cmd.Flags()
	fs.BoolVar(&how.Repair, "repair", false, "make rules, routes and leases of pods again, and remove what certainly belongs to no pod")
	fs.BoolVar(&how.Sole, "sole", false, "no other runtime, and no second crisp, has pods on this node: remove what this one has not recorded, too")
	fs.StringVarP(&format, "output", "o", "text", "the `FORMAT` of the output: text or json")
	return cmd
}

// checkNetwork prints what it finds, and returns networkBroken if a failure is left.
func checkNetwork(ctx context.Context, cfg *config.Config, how network.Check, format string, out io.Writer) error {
	if format != "text" && format != "json" {
		return fmt.Errorf("output format %q is neither text nor json", format)
	}

	var findings []own.Finding
	err := withInspector(cfg, func(i *network.Inspector) error {
		var err error
		findings, err = i.Check(ctx, how)
		return err
	})
	if err != nil {
		return err
	}

	if format == "json" {
		if findings == nil {
			findings = []own.Finding{}
		}
		err = printJSON(out, findings)
	} else {
		err = printFindings(out, findings)
	}
	if err == nil && broken(findings) {
		return networkBroken
	}
	return err
}

// broken reports whether a failure is left.
func broken(findings []own.Finding) bool {
	for _, f := range findings {
		if f.Level == own.LevelFail && !f.Repaired {
			return true
		}
	}
	return false
}

// printFindings prints a line for each finding.
func printFindings(out io.Writer, findings []own.Finding) error {
	for _, f := range findings {
		line := fmt.Sprintf("%-4s  %s: %s", f.Level, f.About, f.Text)
		switch {
		case f.Repaired:
			line += " (repaired)"
		case f.Advice != "":
			line += "; what to do: " + f.Advice
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return nil
}
