package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cri/config"
	"crisp/cri/config/migrate"
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
	}, configCheckCommand(), configMigrateCommand())
}

// configMigrateCommand is the command config migrate.
func configMigrateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "migrate FILE...", Short: "Print the configuration that does what one of containerd or CRI-O does",
		Long: `Print the configuration that does what a config.toml of containerd, or a crio.conf,
does. Comments name the settings without a counterpart. Of several files, as those in
crio.conf.d, or those that containerd imports, later ones replace settings of earlier
ones.`,
		Args: cli.AtLeast(1, "files"), DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			var files []migrate.File
			for _, name := range args {
				data, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				files = append(files, migrate.File{Name: name, Data: data})
			}

			text, err := migrate.Translate(files...)
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
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
