package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cri/config"
)

// configCommand is the command config.
func configCommand() *cobra.Command {
	return cli.Group("config", "Print and check configurations", &cobra.Command{
		Use: "default", Short: "Print the configuration with every key, its description and its default",
		Args: cli.Exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), config.Text())
			return err
		},
	}, configCheckCommand())
}

// configCheckCommand is the command config check, whose file may be given without
// its flag: no other one is read then.
func configCheckCommand() *cobra.Command {
	cmd := cli.Configured(&cobra.Command{
		Use: "check [FLAGS] [FILE]", Short: "Validate a configuration on this machine",
		Long: "Validate a configuration, and check that this machine has what it refers to.",
		Args: cli.UpTo(1, "one file"), DisableFlagsInUseLine: true,
	}, func(_ context.Context, cfg *config.Config, _ []string, out io.Writer) error {
		return checkConfig(cfg, out)
	})

	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return cmd.Flags().Set("config", args[0])
		}
		return nil
	}
	return cmd
}
