package main

import (
	"os"
	"strings"
	"testing"
)

// TestHelp requires every flag in the help of a command, and no error.
func TestHelp(t *testing.T) {
	for _, c := range []struct {
		args string
		want []string
	}{
		{"--help", []string{usage}},
		{"help", []string{usage}},
		{"config --help", []string{usage}},
		{"images -h", []string{usage}},
		{"serve --help", []string{usage, "-config FILE"}},
		{"plan -h", []string{usage, "-config FILE"}},
		{"run --root /x --help", []string{usage, "-config FILE"}},
		{"config check --help", []string{usage, "-config FILE"}},
		{"images check --help", []string{usage, "-config FILE", "-repair"}},
	} {
		if len(c.want) > 1 {
			for _, o := range overrides {
				c.want = append(c.want, "  -"+o.name+" ", strings.ReplaceAll(o.usage, "`", ""))
			}
		}

		var out strings.Builder
		if err := run(t.Context(), strings.Fields(c.args), &out); err != nil {
			t.Errorf("crisp %s: %v", c.args, err)
		}

		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("crisp %s: want %q in:\n%s", c.args, want, &out)
			}
		}
	}
}

func TestWrongFlag(t *testing.T) {
	var out strings.Builder
	err := run(t.Context(), []string{"serve", "--colour", "red"}, &out)
	if err == nil || !strings.Contains(err.Error(), "-colour") || !strings.Contains(err.Error(), usage) || out.Len() > 0 {
		t.Errorf("got %v and %q, want an error with the flag and the usage", err, &out)
	}
}

// TestEveryTextNamesFlags requires every flag and every command in the usage
// and the manual.
func TestEveryTextNamesFlags(t *testing.T) {
	manual, err := os.ReadFile("../../hack/package/crisp.8")
	if err != nil {
		t.Fatal(err)
	}

	for name, text := range map[string]string{"usage": usage, "manual": strings.ReplaceAll(string(manual), `\-`, "-")} {
		want := []string{"--config ", "--repair", "crisp serve", "crisp plan", "crisp run", "crisp images check", "crisp config default", "crisp config check", "crisp version"}
		for _, o := range overrides {
			want = append(want, "--"+o.name+" ")
		}

		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("the %s does not name %s", name, w)
			}
		}
	}
}
