// Package apparmor loads the AppArmor profile that RuntimeDefault stands for.
// It is compiled by apparmor_parser from a template in this package.
package apparmor

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"text/template"
	"time"

	"crisp/runtime/ordinary"
)

// DefaultName is the name of crisp's own profile.
const DefaultName = "crisp-default"

const loadTimeout = 30 * time.Second

// ErrNoParser means that the program that compiles profiles is not installed.
var ErrNoParser = errors.New("apparmor_parser is not installed")

//go:embed profile.template
var text string

// Load compiles the profile and loads it into the kernel under the given name,
// replacing an older one. It needs apparmor_parser.
func Load(ctx context.Context, name string) error {
	parser, err := findParser()
	if err != nil {
		return err
	}

	profile, err := render(name)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	if err := run(ctx, parser, profile, "--replace", "--skip-cache"); err != nil {
		return fmt.Errorf("load AppArmor profile %s: %w", name, err)
	}
	return nil
}

// findParser looks in the usual directories, too, in case they are not in the
// daemon's PATH.
func findParser() (string, error) {
	for _, name := range []string{"apparmor_parser", "/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", ErrNoParser
}

// render returns the text of the profile with the given name.
func render(name string) ([]byte, error) {
	t, err := template.New("profile").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("parse profile template: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, name); err != nil {
		return nil, fmt.Errorf("fill in profile: %w", err)
	}
	return out.Bytes(), nil
}

// run runs the parser on a profile.
func run(ctx context.Context, parser string, profile []byte, args ...string) error {
	cmd := exec.CommandContext(ctx, parser, args...)
	cmd.Stdin = bytes.NewReader(profile)
	cmd.Env = []string{}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ordinary.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(out.String()))
	}
	return nil
}
