package seccomp

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a socket, in bytes.
const maxSocketPath = 107

// beforeListening are the calls that a process makes between loading its filter and
// the moment at which an agent has the listener: nobody could answer for them.
var beforeListening = [...]string{"read", "write", "close", "exit_group"}

// Listens reports whether a profile has calls that an agent decides about.
func Listens(p *specs.LinuxSeccomp) bool {
	return p != nil && (p.DefaultAction == specs.ActNotify ||
		slices.ContainsFunc(p.Syscalls, func(s specs.LinuxSyscall) bool { return s.Action == specs.ActNotify }))
}

// listen checks what a profile says about its agent, and returns the flags of a
// filter that has one, 0 without.
func listen(p *specs.LinuxSeccomp, rules []rule, fallback action) (flags uint32, err error) {
	if p.ListenerMetadata != "" && p.ListenerPath == "" {
		return 0, fmt.Errorf("%w: listenerMetadata without listenerPath", ErrInvalid)
	}
	if !Listens(p) {
		return 0, nil // the specification has listenerPath ignored then
	}

	switch {
	case p.ListenerPath == "":
		return 0, fmt.Errorf("%w: action %s without listenerPath, the socket of the agent that decides", ErrInvalid, specs.ActNotify)
	case !filepath.IsAbs(p.ListenerPath) || len(p.ListenerPath) > maxSocketPath || strings.ContainsRune(p.ListenerPath, 0):
		return 0, fmt.Errorf("%w: listenerPath %q: want the absolute path of a socket, of at most %d bytes", ErrInvalid, p.ListenerPath, maxSocketPath)
	case fallback == notify:
		return 0, fmt.Errorf("%w: action %s as the default: the agent would decide about the calls that tell it", ErrUnsupported, specs.ActNotify)
	}
	for _, r := range rules {
		for _, name := range r.names {
			if r.action == notify && slices.Contains(beforeListening[:], name) {
				return 0, fmt.Errorf("%w: action %s for %s, which a start needs before the agent can answer", ErrUnsupported, specs.ActNotify, name)
			}
		}
	}

	flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	if slices.Contains(p.Flags, specs.LinuxSeccompFlagWaitKillableRecv) {
		flags |= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	}
	return flags, nil
}
