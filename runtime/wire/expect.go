package wire

import (
	"errors"
	"fmt"
)

// What may be there more than once has its bounds.
const (
	// MaxKept bounds the descriptors that are kept under an ID.
	MaxKept = 64
	// MaxFormer bounds the files that a log may have gone to before.
	MaxFormer = 16
)

// Check reports how the files of a start differ from what it may have.
func (m Start) Check(f Files) error {
	stdout, stderr := Streams()[0], Streams()[1]
	switch {
	case m.Hold && f.Has(Log):
		return errors.New("a sandbox has no log")
	case m.Terminal && (f.Has(stderr.Pipe) || f.Has(stdout.Pipe) != f.Has(Log)):
		return errors.New("a terminal has one stream, and that a log")
	}
	return f.check(append(logRoles(f), Plan), Input, Kept)
}

// Check reports how the files differ from what another keeper may have held.
func (m Adopt) Check(f Files) error {
	lives := m.Started.Pid != 0
	if !lives && f.Has(Log) {
		return errors.New("a log without a process")
	}
	return CheckHeld(f, lives, Former)
}

// Check reports how the files differ from those of a plan that ran.
func (m Started) Check(f Files) error { return f.check(pidRoles(m.Pid != 0), Terminal, Namespace) }

// Check reports how the files of an entry differ from what it says.
func (m Entry) Check(f Files) error { return CheckHeld(f, m.Started.Pid != 0 && m.Exit == nil) }

// Check reports how the files differ from the sinks of streams.
func (Attach) Check(f Files) error {
	if len(f) == 0 {
		return errors.New("nothing to copy to")
	}
	return f.check(nil, Streams()[0].Sinks, Streams()[1].Sinks)
}

// Check reports how the files differ from a log.
func (Reopen) Check(f Files) error { return f.check([]Role{Log}) }

// Check reports how the files differ from a program.
func (Upgrade) Check(f Files) error { return f.check([]Role{Program}) }

// CheckHeld reports how a set differs from what is held for one ID, with a
// process that lives or without one; there may be more roles in it. A stream is
// there with pipe, spool and log or not at all.
func CheckHeld(f Files, lives bool, more ...Role) error {
	return f.check(append(pidRoles(lives), logRoles(f)...), append(more, Terminal, Namespace, Kept)...)
}

func pidRoles(lives bool) (need []Role) {
	if lives {
		need = append(need, PidFD)
	}
	return need
}

// logRoles returns what must be there given what is: no stream without its
// spool, and none without a log.
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
		return fmt.Errorf("%d kept descriptors, at most %d are possible", n, MaxKept)
	}
	if n := len(f.Of(Former)); n > MaxFormer {
		return fmt.Errorf("%d former logs, at most %d are possible", n, MaxFormer)
	}
	return f.Check(need, may)
}
