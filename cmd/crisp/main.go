// Command crisp is a Kubernetes container runtime: a daemon that serves the
// CRI, tools to inspect it (package ctl), and tools for the node. The commands are
// listed by crisp help, in docs/operate.md and in crisp(8), which a test compares.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"crisp/cmd/crisp/cli"
	"crisp/cmd/crisp/ctl"
)

// version is set when crisp is built.
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	var code exitCode
	if errors.As(err, &code) {
		os.Exit(int(code))
	}
	// A container's command has said itself what is wrong.
	if exit := ctl.ExitCode(0); err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "crisp:", err)
	}
	os.Exit(ctl.Code(err))
}

// run executes one command line.
func run(ctx context.Context, args []string, out io.Writer) error {
	root := rootCommand()
	root.SetArgs(cli.Doubled(args))
	root.SetOut(out)
	return root.ExecuteContext(ctx)
}

// rootCommand is the command with all others below it.
func rootCommand() *cobra.Command {
	root := cli.Group("crisp", "A Kubernetes container runtime, and tools to inspect it",
		serveCommand(), planCommand(), runCommand(), ctl.ImagesCommand(imagesCommand()), networkCommand(), configCommand(), ctl.DoctorCommand(examine), ctl.SupportCommand(version, examine), syncStdinCommand(), readPagesCommand(), refillStdinCommand(),
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: cli.Exactly(0, "no arguments"),
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "crisp", version)
				return err
			},
		})
	root.AddCommand(ctl.Commands()...)
	root.Version = version
	root.SetVersionTemplate("crisp {{.Version}}\n")

	// Errors are printed by main, without the whole help.
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(cli.Wrong)
	root.PersistentFlags().BoolP("help", "h", false, "describe the command and its flags")
	return root
}
