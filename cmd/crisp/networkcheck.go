package main

import (
	"context"
	"flag"
	"fmt"
	"io"

	"crisp/network"
	"crisp/network/own"
)

// networkBroken is the exit code of a check that leaves failures. One that could not be
// done has another.
const networkBroken exitCode = 2

// networkCheck is the command network check.
func networkCheck(ctx context.Context, args []string, out io.Writer) error {
	how, format := network.Check{}, ""
	cfg, rest, err := loadWith("network check", args, func(fs *flag.FlagSet) {
		fs.BoolVar(&how.Repair, "repair", false, "make rules, routes and leases of pods again, and remove what certainly belongs to no pod")
		fs.BoolVar(&how.Sole, "sole", false, "no other runtime, and no second crisp, has pods on this node: remove what this one has not recorded, too")
		fs.StringVar(&format, "o", "text", "the `FORMAT` of the output: text or json")
	})
	if err != nil {
		return err
	}

	switch {
	case len(rest) > 0:
		return fmt.Errorf("network check takes no arguments, got %q\n%s", rest, usage)
	case format != "text" && format != "json":
		return fmt.Errorf("output format %q is neither text nor json\n%s", format, usage)
	}
	var findings []own.Finding
	err = withInspector(cfg, func(i *network.Inspector) error {
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
