package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"crisp/cmd/crisp/cli"
)

// every calls f for each command that users see.
func every(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			every(c, f)
		}
	}
}

// TestHelp requires every flag and every command in the help, in each form in which
// it can be requested, and no error.
func TestHelp(t *testing.T) {
	every(rootCommand(), func(cmd *cobra.Command) {
		path := strings.Fields(cmd.CommandPath())[1:]
		want := []string{cmd.Short}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) { want = append(want, "--"+f.Name+" ") })
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				want = append(want, "  "+c.Name()+" ", c.Short)
			}
		}
		if cmd.Long != "" {
			want[0] = cmd.Long
		}

		for _, args := range [][]string{append([]string{"help"}, path...), append(path, "--help"), append(path, "-h")} {
			var out strings.Builder
			if err := run(t.Context(), args, &out); err != nil {
				t.Errorf("crisp %s: %v", args, err)
			}
			for _, want := range want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("crisp %s: want %q in:\n%s", args, want, &out)
				}
			}
		}
	})
}

// TestHelpOfOverrides requires the flags of the configuration in the help of a
// command that reads it, also where a flag precedes.
func TestHelpOfOverrides(t *testing.T) {
	for _, args := range []string{"serve --help", "plan -h", "run --root /x --help", "run -root /x -help", "config check --help", "images check --help"} {
		var out strings.Builder
		if err := run(t.Context(), strings.Fields(args), &out); err != nil {
			t.Errorf("crisp %s: %v", args, err)
		}
		for _, o := range cli.Overrides() {
			if !strings.Contains(out.String(), "  --"+o.Name+" ") || !strings.Contains(out.String(), strings.ReplaceAll(o.Usage, "`", "")) {
				t.Errorf("crisp %s: no %s in:\n%s", args, o.Name, &out)
			}
		}
	}
}

// TestWrongCommandLines requires errors that say what is wrong, and nothing on the
// standard output.
func TestWrongCommandLines(t *testing.T) {
	for args, want := range map[string]string{
		"":                        "crisp needs a command",
		"srve":                    "did you mean serve?",
		"config":                  "crisp config needs a command: check, default",
		"config defaults":         "did you mean default?",
		"serve --colour red":      "--colour",
		"serve now":               "takes no arguments",
		"plan":                    "takes one file",
		"run a b":                 "takes one directory",
		"images check --repair x": "takes no arguments",
		"network show a b":        "takes one pod",
		"network show -o yaml":    "yaml",
	} {
		var out strings.Builder
		err := run(t.Context(), strings.Fields(args), &out)
		if err == nil || !strings.Contains(err.Error(), want) || out.Len() > 0 {
			t.Errorf("crisp %s: got %v and %q, want an error with %q", args, err, &out, want)
		}
	}
}

// TestOneDash requires that flags which were accepted with one dash still are,
// unless they belong to a container's command.
func TestOneDash(t *testing.T) {
	for args, want := range map[string]string{
		"serve -root /x -state=/y --listen z": "serve --root /x --state=/y --listen z",
		"images check -repair":                "images check --repair",
		"network show web -o json":            "network show web -o json",
		"config check -- -root":               "config check -- -root",
		"exec web ls -root":                   "exec web ls -root",
	} {
		if got := strings.Join(cli.Doubled(strings.Fields(args)), " "); got != want {
			t.Errorf("%s is %s, want %s", args, got, want)
		}
	}
}

func TestVersion(t *testing.T) {
	for _, word := range []string{"version", "--version"} {
		var out strings.Builder
		if err := run(t.Context(), []string{word}, &out); err != nil || out.String() != "crisp "+version+"\n" {
			t.Errorf("crisp %s: %q, %v", word, &out, err)
		}
	}
}

// TestCompletion has the scripts for shells written, and commands completed.
func TestCompletion(t *testing.T) {
	for args, want := range map[string]string{
		"completion bash": "complete -o default", "completion zsh": "#compdef crisp", "completion fish": "complete -c crisp",
		"__complete net": "network\t", "__complete serve --cgroup-d": "--cgroup-driver\t",
	} {
		var out strings.Builder
		if err := run(t.Context(), strings.Fields(args), &out); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("crisp %s: %v, want %q in %.200q", args, err, want, &out)
		}
	}
}
