package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"crisp/cmd/crisp/cli"
)

var update = flag.Bool("update", false, "write the commands into docs/operate.md and the manual anew")

// TestManual requires the commands of the help, in its words, in docs/operate.md
// and the manual, and there each flag of the configuration.
func TestManual(t *testing.T) {
	var doc, synopsis, manual strings.Builder
	doc.WriteString("| command | |\n|---|---|\n")
	every(rootCommand(), func(cmd *cobra.Command) {
		if cmd.HasSubCommands() {
			return
		}
		fmt.Fprintf(&doc, "| `%s` | %s |\n", strings.ReplaceAll(cmd.UseLine(), "|", `\|`), cmd.Short)
		if synopsis.Len() > 0 {
			synopsis.WriteString(".br\n")
		}
		fmt.Fprintf(&synopsis, ".B %s\n%s", roff(cmd.CommandPath()), roffLines(strings.TrimPrefix(cmd.UseLine(), cmd.CommandPath())))
		fmt.Fprintf(&manual, ".TP\n.B %s\n%s%s", roff(cmd.UseLine()), roffLines(described(cmd)), flagsOf(cmd))
	})

	holds(t, "../../docs/operate.md", "<!-- commands", "<!-- end of commands", doc.String())
	holds(t, "../../hack/package/crisp.8", ".SH SYNOPSIS\n", `.\" end of synopsis`, synopsis.String())
	text := holds(t, "../../hack/package/crisp.8", ".SH COMMANDS\n", `.\" end of commands`, manual.String())
	for _, o := range append(cli.Overrides(), cli.Override{Name: "config"}) {
		if !strings.Contains(text, `.BI \-\-`+strings.ReplaceAll(o.Name, "-", `\-`)+" ") {
			t.Errorf("the manual does not describe --%s", o.Name)
		}
	}
}

// described is what the help says of a command.
func described(cmd *cobra.Command) string {
	if cmd.Long != "" {
		return cmd.Long
	}
	return cmd.Short + "."
}

// flagsOf are the flags of a command that are not those of the configuration, which
// have a section of their own.
func flagsOf(cmd *cobra.Command) string {
	common := []string{"config", "help"}
	for _, o := range cli.Overrides() {
		common = append(common, o.Name)
	}

	var list strings.Builder
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if slices.Contains(common, f.Name) {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		fmt.Fprintf(&list, ".TP\n.B %s\n%s", roff(strings.TrimSpace(name+" "+value)), roffLines(usage+"."))
	})
	if list.Len() == 0 {
		return ""
	}
	return ".RS\n" + list.String() + ".RE\n"
}

// roff escapes text for the manual.
func roff(text string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
}

// roffLines is text as lines of the manual, none of which is a request.
func roffLines(text string) string {
	var out strings.Builder
	for line := range strings.Lines(strings.TrimSpace(text)) {
		line = roff(strings.TrimSpace(line))
		switch {
		case line == "":
			line = ".sp"
		case strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'"):
			line = `\&` + line
		}
		out.WriteString(line + "\n")
	}
	return out.String()
}

// holds requires a text in a file, between the line that begins with one mark and
// that with another, and returns the file.
func holds(t *testing.T, path, from, to, want string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), from)
	line, rest, _ := strings.Cut(rest, "\n")
	between, after, ended := strings.Cut(rest, to)
	if !ok || !ended {
		t.Fatalf("%s has no %q with %q behind it", path, from, to)
	}

	if *update {
		if err := os.WriteFile(path, []byte(before+from+line+"\n"+want+to+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if between != want {
		t.Errorf("%s does not agree with crisp help: go test ./cmd/crisp -run TestManual -update\nit has:\n%s\nwant:\n%s", path, between, want)
	}
	return string(data)
}
