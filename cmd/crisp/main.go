// Command crisp is a Kubernetes container runtime: a daemon that serves the
// CRI, and tools to inspect it.
//
//	crisp serve           serve the CRI
//	crisp plan FILE.json  print the system calls that start a container
//	crisp run BUNDLE      run the container of an OCI bundle
//	crisp images check    compare the images on disk with their digests
//	crisp network init    write a network configuration
//	crisp network show    list what is attached to crisp's own network
//	crisp network check   examine the network, and repair it
//	crisp config default  print the configuration with its defaults
//	crisp config check    validate a configuration on this machine
//	crisp version         print the version
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
		serveCommand(), planCommand(), runCommand(), ctl.ImagesCommand(imagesCommand()), networkCommand(), configCommand(), ctl.DoctorCommand(examine), ctl.SupportCommand(version, examine), syncStdinCommand(),
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
