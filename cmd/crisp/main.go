// Command crisp is a Kubernetes container runtime: a daemon that serves the
// CRI, and the tools to look into it.
//
//	crisp serve           serve the CRI
//	crisp plan FILE.json  print the system calls that start a container
//	crisp run BUNDLE      run the container of an OCI bundle
//	crisp images check    compare the images on disk with their digests
//	crisp config default  print the configuration with its defaults
//	crisp config check    check a configuration
//	crisp version         print the version
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// version is set when crisp is built.
var version = "0.1.0-dev"

const usage = `usage:
  crisp serve [--config FILE] [--root DIR] [--state DIR] [--listen unix://SOCKET]
              [--cni-conf-dir DIR] [--cni-bin-dir DIR[,DIR]] [--registry-config-dir DIR[,DIR]]
  crisp plan [--config FILE] FILE.json
  crisp run [--config FILE] BUNDLE
  crisp images check [--config FILE] [--repair]
  crisp config default
  crisp config check [--config FILE]
  crisp version
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	var code exitCode
	if errors.As(err, &code) {
		os.Exit(int(code))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "crisp:", err)
		os.Exit(1)
	}
}

// run carries out one command line.
func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no command\n%s", usage)
	}
	switch cmd, rest := args[0], args[1:]; cmd {
	case "serve":
		return serve(ctx, rest)
	case "plan":
		return printPlan(rest, out)
	case "run":
		return runBundle(ctx, rest)
	case "images":
		return imagesCommand(ctx, rest, out)
	case "config":
		return configure(rest, out)
	case syncCommand:
		return syncStdin()
	case "version", "--version":
		_, err := fmt.Fprintln(out, "crisp", version)
		return err
	case "help", "--help", "-h":
		_, err := io.WriteString(out, usage)
		return err
	default:
		return fmt.Errorf("unknown command %q\n%s", cmd, usage)
	}
}
