package hook

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Kind is a point in a container's life.
type Kind string

// The kinds of hooks, in the order in which they run.
const (
	Prestart        Kind = "prestart"
	CreateRuntime   Kind = "createRuntime"
	CreateContainer Kind = "createContainer"
	StartContainer  Kind = "startContainer"
	Poststart       Kind = "poststart"
	Poststop        Kind = "poststop"
)

// Kinds lists all kinds in the order in which they run.
func Kinds() []Kind {
	return []Kind{Prestart, CreateRuntime, CreateContainer, StartContainer, Poststart, Poststop}
}

// Setup reports whether hooks of the kind run before the container's root is
// entered.
func (k Kind) Setup() bool { return k == Prestart || k == CreateRuntime || k == CreateContainer }

// InContainer reports whether hooks of the kind run in the container's namespaces.
func (k Kind) InContainer() bool { return k == CreateContainer || k == StartContainer }

// Errors about hooks.
var (
	// ErrInvalid is a hook whose definition or program cannot be used.
	ErrInvalid = errors.New("invalid hook")
	// ErrFailed is a hook that exited with an error, or not in time.
	ErrFailed = errors.New("hook failed")
)

// DefaultTimeout bounds a hook whose definition has no timeout.
const DefaultTimeout = time.Minute

// maxTimeout bounds a hook's timeout, in seconds.
const maxTimeout = 24 * 60 * 60

// Hook is a hook with its kind and its source.
type Hook struct {
	Kind Kind
	specs.Hook
	// Source is where the definition is from, for errors and logs: "CDI
	// specification /etc/cdi/gpu.yaml". Empty means the container's own
	// config.json.
	Source string
}

// Sources has the sources of a spec's hooks: those of a kind in their order. A
// hook beyond the list has no source.
type Sources map[Kind][]string

// String names the hook.
func (h Hook) String() string {
	if h.Source == "" {
		return fmt.Sprintf("%s hook %s", h.Kind, h.Path)
	}
	return fmt.Sprintf("%s hook %s (%s)", h.Kind, h.Path, h.Source)
}

// Limit is how long the hook may run.
func (h Hook) Limit() time.Duration {
	if h.Timeout == nil {
		return DefaultTimeout
	}
	return time.Duration(*h.Timeout) * time.Second
}

// Argv are the hook's arguments. Its path is the first if the definition has none.
func (h Hook) Argv() []string {
	if len(h.Args) == 0 {
		return []string{h.Path}
	}
	return h.Args
}

// field is the list of a spec's hooks of one kind.
func field(s *specs.Hooks, k Kind) *[]specs.Hook {
	switch k {
	case Prestart:
		//lint:ignore SA1019 a spec may still use the old field
		return &s.Prestart
	case CreateRuntime:
		return &s.CreateRuntime
	case CreateContainer:
		return &s.CreateContainer
	case StartContainer:
		return &s.StartContainer
	case Poststart:
		return &s.Poststart
	}
	return &s.Poststop
}

// List returns the hooks of a spec in the order in which they run, nil without
// any; only those of the given kinds, if there are some.
func List(s *specs.Hooks, sources Sources, kinds ...Kind) []Hook {
	if s == nil {
		return nil
	}

	var list []Hook
	for _, k := range Kinds() {
		if len(kinds) > 0 && !slices.Contains(kinds, k) {
			continue
		}
		for i, h := range *field(s, k) {
			one := Hook{Kind: k, Hook: h}
			if i < len(sources[k]) {
				one.Source = sources[k][i]
			}
			list = append(list, one)
		}
	}
	return list
}

// Add appends a hook to a spec, and its source to sources, which is returned.
func Add(s *specs.Spec, sources Sources, h Hook) Sources {
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	list := field(s.Hooks, h.Kind)
	*list = append(*list, h.Hook)
	return note(sources, h.Kind, len(*list), h.Source)
}

// Append adds the source of a hook, the next of its kind, to sources, which is
// returned.
func Append(sources Sources, h Hook) Sources {
	return note(sources, h.Kind, len(sources[h.Kind])+1, h.Source)
}

// note records the source of hook number n of a kind.
func note(sources Sources, k Kind, n int, source string) Sources {
	if sources == nil {
		sources = Sources{}
	}
	for len(sources[k]) < n {
		sources[k] = append(sources[k], "")
	}
	sources[k][n-1] = source
	return sources
}

// Validate checks a hook's definition, without looking at the machine.
func (h Hook) Validate() error {
	switch {
	case !slices.Contains(Kinds(), h.Kind):
		return fmt.Errorf("%s: %w: unknown kind", h, ErrInvalid)
	case !filepath.IsAbs(h.Path):
		return fmt.Errorf("%s: %w: the path is not absolute", h, ErrInvalid)
	case h.Timeout != nil && (*h.Timeout <= 0 || *h.Timeout > maxTimeout):
		return fmt.Errorf("%s: %w: a timeout of %d seconds, want 1 to %d", h, ErrInvalid, *h.Timeout, maxTimeout)
	}
	return h.checkStrings()
}

// The kernel's limits of what a program is given, in bytes: maxString for pages of 4 KiB,
// with the NUL; maxStrings is less than a quarter of any usual stack.
const (
	maxString  = 128 << 10
	maxStrings = 1 << 20
)

func (h Hook) checkStrings() error {
	size := 0
	for _, text := range slices.Concat([]string{h.Path}, h.Args, h.Env) {
		switch {
		case strings.ContainsRune(text, 0):
			return fmt.Errorf("%s: %w: NUL in %q", h, ErrInvalid, text)
		case len(text) >= maxString:
			return fmt.Errorf("%s: %w: an argument or variable of %d bytes, the kernel accepts at most %d", h, ErrInvalid, len(text), maxString-1)
		}
		size += len(text)
	}
	if size > maxStrings {
		return fmt.Errorf("%s: %w: arguments and environment of %d bytes, at most %d", h, ErrInvalid, size, maxStrings)
	}
	return nil
}

// Check validates a hook, and its program on the node. The program of a
// startContainer hook is in the container, so it is checked at the start.
// warning is what an administrator should know about the hook, "" for nothing.
func (h Hook) Check() (warning string, err error) {
	if err := h.Validate(); err != nil {
		return "", err
	}
	if h.Kind == StartContainer {
		return "", nil
	}

	info, err := os.Stat(h.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s: %w: the program does not exist on the node", h, ErrInvalid)
	case err != nil:
		return "", fmt.Errorf("%s: %w: %w", h, ErrInvalid, err)
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s: %w: the program is not a regular file", h, ErrInvalid)
	case info.Mode().Perm()&0o111 == 0:
		return "", fmt.Errorf("%s: %w: the program is not executable", h, ErrInvalid)
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Sprintf("%s: any user of the node can replace the program, which runs as root: remove its write permission for others", h), nil
	}
	return "", nil
}
