package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cmd/crisp/doctor"
	"crisp/cri/admin"
	"crisp/cri/config"
	"crisp/runtime/host"
)

// errUnfit is the error of an examination that ends in failures, which are printed.
var errUnfit = errors.New("the node is not fit to run pods: see above")

// DoctorCommand is the command doctor; examine checks what a configuration refers to.
func DoctorCommand(examine func(*config.Config) error) *cobra.Command {
	asJSON, repair := false, false
	cmd := cli.Configured(&cobra.Command{
		Use: "doctor [--json] [--fix] [FLAGS]", Short: "Examine the node and what pods have left on it",
		Long: `Examine the node: rights, kernel, cgroups, settings, security modules, time,
configuration, network plugins, disk, daemon, and what is left of pods that no
longer exist. Each line is OK, WARN or FAIL, with what to do. The exit code is 1 if
there is a FAIL. It also works without a daemon.`,
		Args: cli.Exactly(0, "no arguments"), DisableFlagsInUseLine: true,
	}, func(ctx context.Context, cfg *config.Config, _ []string, out io.Writer) error {
		found := doctor.Examine(ctx, nodeOf(cfg, examine), repair)
		if err := printFindings(out, found, asJSON); err != nil {
			return err
		}

		if doctor.Worst(found) == doctor.Fail {
			return errUnfit
		}
		return nil
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a list of JSON objects")
	cmd.Flags().BoolVar(&repair, "fix", false, "remove what pods have left that no longer exist, where it is provably crisp's")
	return cmd
}

// nodeOf is this node.
func nodeOf(cfg *config.Config, examine func(*config.Config) error) *doctor.Node {
	socket := nodeSocket(cfg)
	return &doctor.Node{
		Config: cfg, Facts: host.Probe(), Files: os.DirFS("/"), Settled: time.Minute,
		Examine: func() error { return examine(cfg) },
		State: func(ctx context.Context) (state admin.State, err error) {
			err = ask(ctx, socket, admin.StatePath, &state)
			return state, err
		},
	}
}

// nodeSocket is the admin socket of a configuration.
func nodeSocket(cfg *config.Config) string { return filepath.Join(cfg.State, admin.Socket) }

func printFindings(out io.Writer, found []doctor.Finding, asJSON bool) error {
	if asJSON {
		data, err := encode(found, "  ")
		if err == nil {
			_, err = out.Write(data)
		}
		return err
	}

	var b strings.Builder
	count, colors := map[doctor.Status]int{}, colorsFor(out)
	for _, f := range found {
		count[f.Status]++
		mark := fmt.Sprintf("%-4s", f.Status)
		if colors {
			mark = map[doctor.Status]style{doctor.OK: good, doctor.Warn: doubt, doctor.Fail: bad}[f.Status].in(mark)
		}
		text := clean(f.Text)
		if f.Fixed {
			text += " (removed)"
		}
		fmt.Fprintf(&b, "%s  %s: %s\n", mark, f.Check, text)
		if f.Todo != "" {
			fmt.Fprintf(&b, "      what to do: %s\n", clean(f.Todo))
		}
	}
	fmt.Fprintf(&b, "%d OK, %d WARN, %d FAIL\n", count[doctor.OK], count[doctor.Warn], count[doctor.Fail])
	_, err := io.WriteString(out, b.String())
	return err
}
