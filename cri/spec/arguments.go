package spec

import (
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The limits of execve(2), in bytes. A container beyond them could be created,
// but would fail to start with "argument list too long".
const (
	// maxString is the kernel's MAX_ARG_STRLEN for pages of 4 KiB: the limit for
	// one argument or variable, including its NUL.
	maxString = 128 << 10
	// maxArguments is three quarters of the kernel's _STK_LIM: the limit for all
	// strings and the pointers to them. A quarter of the stack limit bounds them,
	// too, but never below minArguments.
	maxArguments = 6 << 20
	minArguments = 128 << 10
	pointer      = 8
	// nameReserve is for the name of the program, which counts as well, and for
	// that of its interpreter with an argument.
	nameReserve = 8 << 10

	rlimitStack = "RLIMIT_STACK"
)

// Bounds on memory, here and in the runtime.
const (
	// maxStrings bounds the number of arguments and variables.
	maxStrings = 128 << 10
	// maxDirectories bounds the directories of PATH in which a program is
	// searched; maxSearch bounds that number times the bytes handed to the
	// program, because each attempt has its own copy of them.
	maxDirectories = 1024
	maxSearch      = 24 << 20
)

// CheckArguments rejects a process that the kernel would not execute because of
// the form or the size of its arguments and environment. The stack limit is the
// process's own, if it has one, or else the host's.
func CheckArguments(p *specs.Process, h Host) error {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return invalid("no command: the name of the program is empty")
	}
	stack := h.StackLimit
	for _, l := range p.Rlimits {
		if l.Type == rlimitStack {
			stack = l.Soft
		}
	}

	limit := uint64(maxArguments)
	if stack > 0 {
		limit = max(min(limit, stack/4), minArguments)
	}

	limit -= nameReserve
	size := uint64(0)
	for what, list := range map[string][]string{"argument": p.Args, "environment variable": p.Env} {
		for _, s := range list {
			if len(s)+1 > maxString {
				return invalid("%s %q... of %d bytes, the kernel accepts at most %d", what, s[:32], len(s), maxString-1)
			}
			if strings.ContainsRune(s, 0) {
				return invalid("NUL byte in %s %q", what, shorten(s))
			}
			size += uint64(len(s)) + 1 + pointer
		}
	}

	if size > limit {
		return invalid("arguments and environment take %d bytes, with %d strings, the kernel accepts at most %d with this stack limit",
			size, len(p.Args)+len(p.Env), limit)
	}
	return checkSearch(p, size)
}

// checkSearch bounds the cost of the search for a program in PATH.
func checkSearch(p *specs.Process, size uint64) error {
	if len(p.Args) == 0 || strings.Contains(p.Args[0], "/") {
		return nil
	}
	directories := uint64(0)
	for _, kv := range p.Env {
		if list, ok := strings.CutPrefix(kv, "PATH="); ok {
			directories = uint64(strings.Count(list, ":")) + 1
			break
		}
	}

	switch {
	case directories > maxDirectories:
		return invalid("PATH has %d directories to search for %q, at most %d are allowed: give the path of the program", directories, shorten(p.Args[0]), maxDirectories)
	case directories*size > maxSearch:
		return invalid("PATH has too many (%d) directories to search for %q with %d bytes of arguments and environment: give the path of the program", directories, shorten(p.Args[0]), size)
	}

	return nil
}

func shorten(s string) string {
	const limit = 64
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}

// checkCounts bounds the number of strings before they are merged.
func (b *builder) checkCounts() error {
	args := max(len(b.Config.GetCommand())+len(b.Config.GetArgs()), len(b.Image.Entrypoint)+len(b.Image.Cmd))
	if n := args + len(b.Image.Env) + len(b.Config.GetEnvs()); n > maxStrings {
		return invalid("%d arguments and environment variables, at most %d are allowed", n, maxStrings)
	}
	return nil
}

// Cost bounds the bytes of memory that [ResolveUser], [Container] and [Encode]
// take for a container of an image with the given configuration.
func Cost(cfg *runtimeapi.ContainerConfig, image ocispec.ImageConfig) int64 {
	const (
		// A string exists in the request, with its name, in the spec, and encoded,
		// where a byte may take six.
		copies = 10
		header = 64
		// base is for a line of /etc/passwd and the rest of the spec.
		base = 2 << 20
	)

	n := int64(base)
	for _, list := range [][]string{cfg.GetCommand(), cfg.GetArgs(), image.Entrypoint, image.Cmd, image.Env} {
		for _, s := range list {
			n += copies*int64(len(s)) + header
		}
	}

	for _, kv := range cfg.GetEnvs() {
		n += copies*int64(len(kv.GetKey())+len(kv.GetValue())) + header
	}
	return n
}
