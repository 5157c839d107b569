package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"crisp/cri/config"
)

// TestReloadable requires that the documentation lists the keys that a reload applies,
// and that each exists and is in one row.
func TestReloadable(t *testing.T) {
	text, err := os.ReadFile("../../docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Changing the configuration\n")
	section, _, _ = strings.Cut(section, "\n## ")

	var seen []string
	for _, r := range reloads() {
		for _, key := range r.keys {
			if !slices.Contains(config.Keys(), key) || slices.Contains(seen, key) {
				t.Errorf("%q is no key, or in two rows", key)
			}
			seen = append(seen, key)
			if !strings.Contains(section, "`"+key+"`") {
				t.Errorf("the documentation lacks %s", key)
			}
		}
	}
	for _, key := range config.Keys() {
		if !slices.Contains(seen, key) && strings.Contains(section, "`"+key+"`") {
			t.Errorf("the documentation has %s, which needs a restart", key)
		}
	}
}

// TestChanged finds the keys that differ, and takes over some.
func TestChanged(t *testing.T) {
	a, b := config.Default(), config.Default()
	if got := a.Changed(b); len(got) > 0 {
		t.Errorf("of the same are changed %q", got)
	}
	b.LogLevel, b.PinnedImages, b.Root = "debug", []string{"x"}, "/elsewhere"
	if got := a.Changed(b); !slices.Equal(got, []string{"root", "log_level", "pinned_images"}) {
		t.Errorf("changed are %q", got)
	}
	a.Adopt(b, []string{"log_level", "pinned_images"})
	if got := a.Changed(b); !slices.Equal(got, []string{"root"}) || a.LogLevel != "debug" {
		t.Errorf("afterwards %q are changed", got)
	}
}
