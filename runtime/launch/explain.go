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

// explain improves the error of a failed step where its name and cause are not
// sufficient: the program itself, and a mount on a target of another type.
func explain(err error, p *plan.Plan, proc *specs.Process, root *os.File) error {
	var failed *spawn.StepError
	if !errors.As(err, &failed) || failed.Index < 0 || failed.Index >= len(p.Steps) {
		return err
	}
	switch step := &p.Steps[failed.Index]; {
	case step.Call == unix.SYS_EXECVE:
		return explainExec(failed, p, proc, root)
	case step.Call == unix.SYS_FSTATFS && len(step.Avoid) > 0 && failed.Err == unix.EBADMSG:
		return fmt.Errorf("%w: %w", err, ErrInProcfs)
	case step.Call == unix.SYS_MOVE_MOUNT && failed.Err == unix.EINVAL:
		return fmt.Errorf("%w (a directory cannot be mounted on a file, nor a file on a directory)", err)
	}
	return err
}

func explainExec(failed *spawn.StepError, p *plan.Plan, proc *specs.Process, root *os.File) error {
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

// candidates are the files that a plan tries to execute.
func candidates(p *plan.Plan) []string {
	var files []string
	for i := range p.Steps {
		if s := &p.Steps[i]; s.Call == unix.SYS_EXECVE {
			files = append(files, s.Args[0].Str)
		}
	}
	return files
}

// present returns the first of the files that exists in the root file system,
// "" if none does or the root is unknown.
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
