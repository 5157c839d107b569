package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMigrate translates a configuration and validates the result.
func TestMigrate(t *testing.T) {
	old, translated := filepath.Join(t.TempDir(), "crio.conf"), filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(old, []byte("[crio.runtime]\npids_limit = 77\nno_pivot = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := run(t.Context(), []string{"config", "migrate", old}, &out); err != nil || !strings.Contains(out.String(), "\npids_limit = 77\n") || !strings.Contains(out.String(), "no_pivot") {
		t.Fatalf("printed %q, %v", &out, err)
	}
	if err := os.WriteFile(translated, []byte(out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"config", "check", translated}, &strings.Builder{}); err != nil {
		t.Error(err)
	}
	if err := run(t.Context(), []string{"config", "migrate", translated}, &strings.Builder{}); err == nil {
		t.Error("crisp's own configuration was translated")
	}
}
