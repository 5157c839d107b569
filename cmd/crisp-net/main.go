// Command crisp-net is crisp's own network as a CNI plugin, for other runtimes,
// cnitool and plugins that delegate to it. The daemon does not need it: there, the
// same code answers in process. See package crisp/network/own.
//
// It is called under the name of the plugin type, with the variables and the standard
// input that the CNI specification describes.
package main

import (
	"context"
	"os"
	"os/signal"

	"github.com/containernetworking/cni/pkg/skel"
	"golang.org/x/sys/unix"

	"crisp/network/own"
)

// version is set when crisp is built.
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	// A failure is printed as the specification wants it.
	failure := skel.PluginMainFuncsWithError(functions(ctx), own.Versions(), "crisp-net "+version+", crisp's own network as a CNI plugin")
	stop()
	if failure == nil {
		return
	}
	if err := failure.Print(); err != nil {
		os.Stderr.WriteString("crisp-net: print error: " + err.Error() + "\n")
	}
	os.Exit(1)
}

// functions are the verbs of the specification.
func functions(ctx context.Context) skel.CNIFuncs {
	answer := func(command string) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return call(ctx, command, args) }
	}
	return skel.CNIFuncs{Add: answer("ADD"), Del: answer("DEL"), Check: answer("CHECK"), Status: answer("STATUS"), GC: answer("GC")}
}

// call answers one call in the namespace of this process.
func call(ctx context.Context, command string, args *skel.CmdArgs) error {
	plugin, err := own.Open(false)
	if err != nil {
		return err
	}
	defer plugin.Close()

	output, err := plugin.Call(ctx, own.Call{
		Command: command, ID: args.ContainerID, NetNS: args.Netns, IfName: args.IfName, Args: args.Args, Config: args.StdinData,
	})
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(output)
	return err
}
