package wire

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire/pack"
)

// Role is the purpose of a descriptor. A new kind of descriptor only needs a
// new role to be sent, passed to the keeper's next program and stored.
//
// A role that ends in "/" is a family: its members append a unique name. One
// that ends in "..." is a list: several descriptors may have it, and their
// order matters. Any other role has at most one descriptor.
//
// Roles are part of the stored data and of the state that passes between
// versions, so their text must not change.
type Role string

// The roles, except those of [Streams].
const (
	// Program is the program that a keeper executes, in a sealed memfd.
	Program Role = "program"
	// Plan is an encoded plan in a sealed memfd, Input its inputs in order.
	Plan  Role = "plan"
	Input Role = "input..."

	PidFD     Role = "pidfd"
	Terminal  Role = "terminal" // the master end
	Namespace Role = "ns/"
	// Kept is held under its name until a daemon closes it.
	Kept Role = "keep/"

	// Log is where the output goes, Former where it may have gone before, oldest first.
	Log    Role = "log"
	Former Role = "former..."
)

// Stream is the roles of one of the outputs of a container.
type Stream struct {
	// Name is the stream's name in a log.
	Name string
	// Pipe is the read end of the container's pipe or, with a terminal, the pipe
	// that the terminal's output passes through.
	Pipe Role
	// Spool holds what was read and is not logged yet.
	Spool Role
	// Sinks are the write ends of pipes to which the output is copied.
	Sinks Role
}

// Streams returns the outputs.
func Streams() [2]Stream {
	return [2]Stream{
		{"stdout", "stdout", "stdout/spool", "stdout/sink..."},
		{"stderr", "stderr", "stderr/spool", "stderr/sink..."},
	}
}

// Of returns the member of a family with the given name.
func (r Role) Of(name string) Role { return r + Role(name) }

// Name returns the name of a member of a family.
func (r Role) Name(family Role) string { return strings.TrimPrefix(string(r), string(family)) }

// Is reports whether r is a role, or a member of it if that is a family.
func (r Role) Is(of Role) bool {
	if strings.HasSuffix(string(of), "/") {
		return len(r) > len(of) && strings.HasPrefix(string(r), string(of))
	}
	return r == of
}

func (r Role) isList() bool { return strings.HasSuffix(string(r), "...") }

// File is a descriptor with its role.
type File struct {
	Role Role
	FD   int
}

// Files is a set of descriptors by role. Its holder owns them, unless
// documented otherwise, until they are taken out of it.
type Files []File

// maxFiles bounds the descriptors of one set.
const maxFiles = 8192

// Add adds a descriptor.
func (f *Files) Add(r Role, fd int) { *f = append(*f, File{r, fd}) }

// FD returns the descriptor with the role, -1 if there is none.
func (f Files) FD(r Role) int {
	for _, x := range f {
		if x.Role == r {
			return x.FD
		}
	}
	return -1
}

// Has reports whether a descriptor has the role.
func (f Files) Has(r Role) bool {
	return slices.ContainsFunc(f, func(x File) bool { return x.Role == r })
}

// Of returns the descriptors with one of the roles; they stay in f, too.
func (f Files) Of(roles ...Role) (list Files) {
	for _, x := range f {
		if x.Role.among(roles) != "" {
			list = append(list, x)
		}
	}
	return list
}

// Take removes a descriptor from the set and returns it, -1 if there is none.
func (f *Files) Take(r Role) int {
	fd := f.FD(r)
	*f = slices.DeleteFunc(*f, func(x File) bool { return x.Role == r && x.FD == fd })
	return fd
}

// TakeAll removes all descriptors with one of the roles from the set and returns them.
func (f *Files) TakeAll(roles ...Role) Files {
	list := f.Of(roles...)
	if len(list) > 0 {
		*f = slices.DeleteFunc(*f, func(x File) bool { return x.Role.among(roles) != "" })
	}
	return list
}

// Numbers returns the descriptors alone.
func (f Files) Numbers() []int {
	fds := make([]int, 0, len(f))
	for _, x := range f {
		fds = append(fds, x.FD)
	}
	return fds
}

// Copy returns copies of the descriptors, none of them below 3.
func (f Files) Copy() (Files, error) {
	copies := make(Files, 0, len(f))
	for _, x := range f {
		fd, err := unix.FcntlInt(uintptr(x.FD), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			copies.Close()
			return nil, fmt.Errorf("copy descriptor %q: %w", x.Role, err)
		}
		copies.Add(x.Role, fd)
	}
	return copies, nil
}

// Close closes all descriptors of the set.
func (f Files) Close() {
	for _, x := range f {
		unix.Close(x.FD)
	}
}

// among returns the member of roles that r is, "" if there is none.
func (r Role) among(roles []Role) Role {
	for _, of := range roles {
		if r.Is(of) {
			return of
		}
	}
	return ""
}

// Check validates a received set: it has all of need, some of may, nothing
// else, and no duplicates except in lists.
func (f Files) Check(need, may []Role) error {
	for i, x := range f {
		of := x.Role.among(need)
		if of == "" {
			of = x.Role.among(may)
		}
		switch {
		case of == "":
			return fmt.Errorf("unexpected descriptor %q", x.Role)
		case !of.isList() && f[:i].Has(x.Role):
			return fmt.Errorf("duplicate descriptor %q", x.Role)
		}
	}

	for _, r := range need {
		if !f.Has(r) {
			return fmt.Errorf("descriptor %q is missing", r)
		}
	}
	return nil
}

// PutRoles writes the roles of the set, run-length encoded.
func (f Files) PutRoles(w *pack.Writer) {
	var runs uint64
	for i := range f {
		if i == 0 || f[i].Role != f[i-1].Role {
			runs++
		}
	}
	w.Uint(runs)

	for from := 0; from < len(f); {
		to := from + 1
		for to < len(f) && f[to].Role == f[from].Role {
			to++
		}
		w.String(string(f[from].Role))
		w.Uint(uint64(to - from))
		from = to
	}
}

// TakeRoles reads what PutRoles wrote; the descriptors are -1.
func TakeRoles(r *pack.Reader) (f Files, err error) {
	for range r.Count(maxFiles) {
		role, n := Role(r.String()), r.Uint()
		if n == 0 || n > uint64(maxFiles-len(f)) {
			return nil, fmt.Errorf("%w: %d descriptors %q", pack.ErrMalformed, n, role)
		}
		for range n {
			f.Add(role, -1)
		}
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("roles of descriptors: %w", err)
	}
	return f, nil
}

// CloseAll closes descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Number returns f's descriptor without changing its blocking mode as Fd does.
func Number(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("use file %s: %w", f.Name(), err)
	}
	n := -1
	if err := raw.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		return -1, fmt.Errorf("use file %s: %w", f.Name(), err)
	}
	return n, nil
}
