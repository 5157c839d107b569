package wire

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire/pack"
)

// Role says what a descriptor is for. A new kind of descriptor is a new role;
// how it travels, passes to the next program of a keeper and is stored follows.
//
// A role that ends in "/" is a family: its members have a name behind it, each
// another. One that ends in "..." is a list: descriptors may share it, and
// their order counts. Of all others there is one descriptor at most.
//
// A role is part of what is stored and of what passes from one version to the
// next, so none changes its text.
type Role string

// The roles, but for those of [Streams].
const (
	// Program is what a keeper is to continue as, in a sealed memfd.
	Program Role = "program"
	// Plan is an encoded plan in a sealed memfd, Input its inputs in its order.
	Plan  Role = "plan"
	Input Role = "input..."

	PidFD     Role = "pidfd"
	Terminal  Role = "terminal" // its master end
	Namespace Role = "ns/"
	// Kept is held under its name until a daemon gives it up.
	Kept Role = "keep/"

	// Log is where the output goes, Former where it may have gone before, the
	// oldest first.
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
	// Spool is what was read and is not yet in the log.
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

// Files is a set of descriptors by role. Who has it owns them, unless told
// otherwise, until they are taken out of it.
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

// Take takes a descriptor out of the set, -1 if it is not there.
func (f *Files) Take(r Role) int {
	fd := f.FD(r)
	*f = slices.DeleteFunc(*f, func(x File) bool { return x.Role == r && x.FD == fd })
	return fd
}

// TakeAll takes all descriptors with one of the roles out of the set.
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

// Close closes what is in the set.
func (f Files) Close() {
	for _, x := range f {
		unix.Close(x.FD)
	}
}

// among returns the one of roles that r is, "" if it is none of them.
func (r Role) among(roles []Role) Role {
	for _, of := range roles {
		if r.Is(of) {
			return of
		}
	}
	return ""
}

// Check reports how a set that came from outside differs from what is
// expected: all of need, some of may, nothing else, and nothing twice that is
// not a list.
func (f Files) Check(need, may []Role) error {
	for i, x := range f {
		of := x.Role.among(need)
		if of == "" {
			of = x.Role.among(may)
		}
		switch {
		case of == "":
			return fmt.Errorf("descriptor %q is not expected", x.Role)
		case !of.isList() && f[:i].Has(x.Role):
			return fmt.Errorf("descriptor %q is there twice", x.Role)
		}
	}

	for _, r := range need {
		if !f.Has(r) {
			return fmt.Errorf("descriptor %q is missing", r)
		}
	}
	return nil
}

// PutRoles writes the roles of the set, equal ones in a row as one with a count.
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

// Number returns f's descriptor without changing its blocking mode, as Fd would.
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
