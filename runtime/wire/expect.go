package wire

import (
	"errors"
	"fmt"
)

// Bounds of the roles with several descriptors.
const (
	// MaxKept bounds the kept descriptors of an ID.
	MaxKept = 64
	// MaxFormer bounds the former files of a log.
	MaxFormer = 16
)

// Check validates the files of a start.
func (m Start) Check(f Files) error {
	stdout, stderr := Streams()[0], Streams()[1]
	switch {
	case m.Hold && f.Has(Log):
		return errors.New("a sandbox has no log")
	case m.Terminal && (f.Has(stderr.Pipe) || f.Has(stdout.Pipe) != f.Has(Log)):
		return errors.New("a terminal needs stdout and a log, and has no stderr")
	}
	return f.check(append(logRoles(f), Plan), Input, Kept)
}

// Check validates the files of an entry of another keeper.
func (m Adopt) Check(f Files) error {
	lives := m.Started.Pid != 0
	if !lives && f.Has(Log) {
		return errors.New("a log without a process")
	}
	return CheckHeld(f, lives, Former)
}

// Check validates the files of a plan that ran.
func (m Started) Check(f Files) error { return f.check(pidRoles(m.Pid != 0), Terminal, Namespace) }

// Check validates the files of an entry.
func (m Entry) Check(f Files) error { return CheckHeld(f, m.Started.Pid != 0 && m.Exit == nil) }

// Check validates the sinks of streams.
func (Attach) Check(f Files) error {
	if len(f) == 0 {
		return errors.New("nothing to copy to")
	}
	return f.check(nil, Streams()[0].Sinks, Streams()[1].Sinks)
}

// Check validates the files of a process that takes another's place.
func (Replace) Check(f Files) error { return CheckHeld(f, true) }

// Check validates that the files are one log.
func (Reopen) Check(f Files) error { return f.check([]Role{Log}) }

// Check validates that the files are one program.
func (Upgrade) Check(f Files) error { return f.check([]Role{Program}) }

// CheckHeld validates the descriptors held for one ID, with or without a
// running process; the roles in more are optional. A stream needs pipe, spool
// and log.
func CheckHeld(f Files, lives bool, more ...Role) error {
	return f.check(append(pidRoles(lives), logRoles(f)...), append(more, Terminal, Namespace, Kept)...)
}

func pidRoles(lives bool) (need []Role) {
	if lives {
		need = append(need, PidFD)
	}
	return need
}

// logRoles returns the roles that those present require: each stream needs its
// spool, and a log.
func logRoles(f Files) (need []Role) {
	for _, s := range Streams() {
		if f.Has(s.Pipe) || f.Has(s.Spool) {
			need = append(need, s.Pipe, s.Spool)
		}
	}
	if len(need) > 0 || f.Has(Log) || f.Has(Former) {
		need = append(need, Log)
	}
	return need
}

func (f Files) check(need []Role, may ...Role) error {
	if n := len(f.Of(Kept)); n > MaxKept {
		return fmt.Errorf("%d kept descriptors, want at most %d", n, MaxKept)
	}
	if n := len(f.Of(Former)); n > MaxFormer {
		return fmt.Errorf("%d former logs, want at most %d", n, MaxFormer)
	}
	return f.Check(need, may)
}
