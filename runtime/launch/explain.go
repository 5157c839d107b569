package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/rootpath"
	"crisp/runtime/spawn"
)

// explain turns the failure of the last step, the program itself, into words
// that say what is wrong with it. Other errors name their step already.
func explain(err error, p *plan.Plan, proc *specs.Process, root *os.File) error {
	var failed *spawn.StepError
	if !errors.As(err, &failed) || failed.Index < 0 || failed.Index >= len(p.Steps) || p.Steps[failed.Index].Call != unix.SYS_EXECVE {
		return err
	}
	name := proc.Args[0]
	searched := !strings.Contains(name, "/")
	switch failed.Err {
	case unix.ENOENT, unix.ENOTDIR:
		switch file, mode := present(candidates(p), root); {
		case file != "" && mode&0o111 == 0:
			return fmt.Errorf("%s: exec %q: %w: %w", p.Name, name, ErrNotExecutable, unix.EACCES)
		case file != "":
			return fmt.Errorf("%s: exec %q: the interpreter of %s is missing: %w: %w", p.Name, name, file, ErrNotFound, failed.Err)
		case searched:
			return fmt.Errorf("%s: exec %q: %w in $PATH", p.Name, name, ErrNotFound)
		}
		return fmt.Errorf("%s: exec %q: %w: %w", p.Name, name, ErrNotFound, failed.Err)
	case unix.EACCES, unix.ENOEXEC:
		return fmt.Errorf("%s: exec %q: %w: %w", p.Name, name, ErrNotExecutable, failed.Err)
	}
	return fmt.Errorf("%s: exec %q: %w", p.Name, name, failed.Err)
}

// candidates are the files that a plan tried to execute.
func candidates(p *plan.Plan) []string {
	var files []string
	for i := range p.Steps {
		if s := &p.Steps[i]; s.Call == unix.SYS_EXECVE {
			files = append(files, s.Args[0].Str)
		}
	}
	return files
}

// present returns the first of the files that the root file system has, "" if
// it has none or is not known.
func present(files []string, root *os.File) (string, fs.FileMode) {
	if root == nil {
		return "", 0
	}
	for _, file := range files {
		if !path.IsAbs(file) {
			continue
		}
		f, err := rootpath.Open(root, file, unix.O_PATH)
		if err != nil {
			continue
		}
		info, err := f.Stat()
		f.Close()
		if err == nil {
			return file, info.Mode().Perm()
		}
	}
	return "", 0
}
