package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
)

var update = flag.Bool("update", false, "write the commands into docs/operate.md and the manual anew")

// TestManual requires the commands of the help, in its words, in docs/operate.md
// and the manual, and there each flag of the configuration.
func TestManual(t *testing.T) {
	var doc, manual strings.Builder
	doc.WriteString("| command | |\n|---|---|\n")
	every(rootCommand(), func(cmd *cobra.Command) {
		if cmd.HasSubCommands() {
			return
		}
		fmt.Fprintf(&doc, "| `%s` | %s |\n", strings.ReplaceAll(cmd.UseLine(), "|", `\|`), cmd.Short)
		fmt.Fprintf(&manual, ".TP\n.B %s\n%s.\n", strings.ReplaceAll(cmd.UseLine(), "-", `\-`), cmd.Short)
	})

	holds(t, "../../docs/operate.md", "<!-- commands", "<!-- end of commands", doc.String())
	text := holds(t, "../../hack/package/crisp.8", ".SH COMMANDS\n", `.\" end of commands`, manual.String())
	for _, o := range append(cli.Overrides(), cli.Override{Name: "config"}) {
		if !strings.Contains(text, `.BI \-\-`+strings.ReplaceAll(o.Name, "-", `\-`)+" ") {
			t.Errorf("the manual does not describe --%s", o.Name)
		}
	}
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
