// Command notices writes the licences of all modules that crisp's programs
// link, and of Go itself, to standard output: the package carries them.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// errNoLicence means that a module has no licence file.
var errNoLicence = errors.New("no licence found")

// module is a linked module, and where its files are.
type module struct{ path, version, dir string }

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "notices:", err)
		os.Exit(1)
	}
}

func run(w io.Writer) error {
	list, err := linked("crisp/cmd/...")
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	for _, m := range list {
		if err := write(out, m); err != nil {
			return err
		}
	}
	return out.Flush()
}

// linked returns the modules that are linked into a pattern's programs, by
// path. The first is Go, for its standard library.
func linked(pattern string) ([]module, error) {
	const format = `{{with .Module}}{{if not .Main}}{{.Path}}{{"\t"}}{{.Version}}{{"\t"}}{{.Dir}}{{end}}{{end}}`
	out, err := command("go", "list", "-deps", "-f", format, pattern)
	if err != nil {
		return nil, err
	}

	var list []module
	for line := range strings.Lines(out) {
		if f := strings.Split(strings.TrimSpace(line), "\t"); len(f) == 3 {
			list = append(list, module{f[0], f[1], f[2]})
		}
	}

	slices.SortFunc(list, func(a, b module) int { return strings.Compare(a.path, b.path) })

	env, err := command("go", "env", "GOROOT", "GOVERSION")
	if err != nil {
		return nil, err
	}
	root, version, _ := strings.Cut(strings.TrimSpace(env), "\n")
	return append([]module{{"Go", version, root}}, slices.Compact(list)...), nil
}

func command(name string, args ...string) (string, error) {
	var complaint bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run %s %s: %w: %s", name, args[0], err, complaint.String())
	}
	return string(out), nil
}

// write writes the notices of a module.
func write(w io.Writer, m module) error {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return fmt.Errorf("read module %s: %w", m.path, err)
	}

	licensed := false
	for _, e := range entries {
		if e.IsDir() || !isNotice(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(m.dir, e.Name()))
		if err != nil {
			return fmt.Errorf("read notice of %s: %w", m.path, err)
		}

		// A NOTICE accompanies a licence, but is not one.
		licensed = licensed || !strings.HasPrefix(strings.ToUpper(e.Name()), "NOTICE")
		fmt.Fprintf(w, "==== %s %s: %s\n\n%s\n", m.path, m.version, e.Name(), bytes.TrimSpace(text))
		fmt.Fprintln(w)
	}
	if !licensed {
		return fmt.Errorf("module %s in %s: %w", m.path, m.dir, errNoLicence)
	}

	return nil
}

// isNotice reports by its name whether a file is a licence or a notice.
func isNotice(name string) bool {
	name = strings.ToUpper(name)
	for _, prefix := range []string{"LICENSE", "LICENCE", "COPYING", "NOTICE", "PATENTS"} {
		if strings.HasPrefix(name, prefix) && !strings.HasSuffix(name, ".GO") {
			return true
		}
	}
	return false
}
