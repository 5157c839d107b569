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

	"golang.org/x/sys/unix"
)

// version is set when crisp is built.
var version = "0.1.0-dev"

const usage = `usage:
  crisp serve [FLAGS]
  crisp plan [FLAGS] FILE.json
  crisp run [FLAGS] BUNDLE
  crisp images check [--repair] [FLAGS]
  crisp network init [--subnet CIDR[,CIDR]] [--cluster CIDR[,CIDR]] [--mode routed|bridge] [FLAGS]
  crisp network show [-o json] [FLAGS] [POD]
  crisp network check [--repair [--sole]] [-o json] [FLAGS]
  crisp config default
  crisp config check [FLAGS] [FILE]
  crisp version

FLAGS are --config FILE and, to override keys of that file:
  [--root DIR] [--state DIR] [--listen unix://SOCKET] [--cgroup-driver cgroupfs|systemd]
  [--cni-conf-dir DIR] [--cni-bin-dir DIR[,DIR]] [--registry-config-dir DIR[,DIR]]
  [--log-level error|info|debug|trace] [--log-format text|json]
A command with --help describes each of them.
`

// helpText is the error of a command that was asked for help, and its output.
type helpText string

func (helpText) Error() string { return "help requested" }

// asksForHelp reports whether a command's first word requests help.
func asksForHelp(word string) bool { return word == "help" || word == "--help" || word == "-h" }

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

// run executes one command line.
func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no command\n%s", usage)
	}
	err := command(ctx, args, out)
	if help := helpText(""); errors.As(err, &help) {
		_, err = io.WriteString(out, string(help))
	}
	return err
}

// command executes one command.
func command(ctx context.Context, args []string, out io.Writer) error {
	switch cmd, rest := args[0], args[1:]; cmd {
	case "serve":
		return serve(ctx, rest)
	case "plan":
		return printPlan(rest, out)
	case "run":
		return runBundle(ctx, rest)
	case "images":
		return imagesCommand(ctx, rest, out)
	case "network":
		return networkCommand(ctx, rest, out)
	case "config":
		return configure(rest, out)
	case syncCommand:
		return syncStdin()
	case "version", "--version":
		_, err := fmt.Fprintln(out, "crisp", version)
		return err
	default:
		if asksForHelp(cmd) {
			return helpText(usage)
		}
		return fmt.Errorf("unknown command %q\n%s", cmd, usage)
	}
}
