package apparmor

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"crisp/test/testkit"
)

func TestRender(t *testing.T) {
	profile, err := render("test-profile")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(profile), "profile test-profile flags=") || strings.Contains(string(profile), "{{") {
		t.Errorf("profile:\n%s", profile)
	}
}

// TestProfileCompiles gives the profile to the real compiler, but not to the kernel.
func TestProfileCompiles(t *testing.T) {
	parser, err := findParser()
	if errors.Is(err, ErrNoParser) {
		testkit.Skip(t, "apparmor", err.Error())
	}

	profile, err := render(DefaultName)
	if err != nil {
		t.Fatal(err)
	}

	if err := run(context.Background(), parser, profile, "--skip-kernel-load", "--skip-cache"); err != nil {
		t.Error(err)
	}
	if err := run(context.Background(), parser, append(profile, "}"...), "--skip-kernel-load", "--skip-cache"); err == nil {
		t.Error("a broken profile compiled")
	} else if !strings.Contains(err.Error(), "syntax error") {
		t.Errorf("err = %v, want the compiler's words", err)
	}
}

func TestRunFails(t *testing.T) {
	if err := run(context.Background(), "/no/such/parser", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("run() = %v, want ErrNotExist", err)
	}
}
