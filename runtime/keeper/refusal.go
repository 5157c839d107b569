package keeper

import (
	"errors"
	"time"
)

const (
	// patience is how long a log may take nothing before lines are dropped: a
	// full disk is emptied by then, or a broken one replaced. Until then the
	// writer waits once its pipe is full, and loses nothing.
	patience = 30 * time.Second
	// exitPatience is how long the end of a process waits for its log.
	exitPatience = 2 * time.Second
	// firstRetry and lastRetry are the first and the longest time between two attempts.
	firstRetry, lastRetry = 10 * time.Millisecond, time.Second
)

// errRefused is a log that takes nothing. What is to be logged is still held.
var errRefused = errors.New("log refuses writes")

// refusal is the time in which a log takes nothing.
type refusal struct {
	since time.Time // zero while it takes everything
	next  time.Duration
	cause error
	lost  uint64 // dropped lines of the whole log when it began
}

func (r *refusal) on() bool { return !r.since.IsZero() }

// writeLocked logs what is held, all of it or all but an unfinished line. It
// is errRefused as long as that is to be tried again.
func (o *output) writeLocked(all bool) error {
	write := o.log.Write
	if all {
		write = o.log.End
	}

	r := &o.refusal
	err := write(o.stream)
	switch {
	case err == nil && r.on():
		o.k.logf("%s of %s: goes on after %v, %d lines were dropped", o.roles.Name, o.id, time.Since(r.since).Round(time.Second), o.log.Dropped()-r.lost)
		*r = refusal{}
		return nil
	case err == nil:
		return nil
	case !r.on():
		*r = refusal{since: time.Now(), next: firstRetry, cause: err, lost: o.log.Dropped()}
		o.k.logf("%s of %s: %v; its writer waits", o.roles.Name, o.id, err)
	case time.Since(r.since) > patience:
		// From now on each read is one more attempt.
		o.log.Drop(o.stream)
		return nil
	}

	return errRefused
}

// await waits before the next attempt, or until stop is closed.
func (o *output) await(stop <-chan struct{}) {
	o.mu.Lock()
	wait := o.refusal.next
	o.refusal.next = min(2*wait, lastRetry)
	o.mu.Unlock()
	select {
	case <-time.After(wait):
	case <-stop:
	}
}

// awaitOr is await that gives up, with an error, when late has fired or the
// entry is released.
func (o *output) awaitOr(late <-chan time.Time) error {
	o.await(o.gone)
	select {
	case <-late:
		return errRefused
	case <-o.gone:
		return errRefused
	default:
		return nil
	}
}

// trimLaterLocked has the spool trimmed when it was idle for a while.
func (o *output) trimLaterLocked() {
	if o.trim != nil || !o.spool.Bulky() {
		return
	}
	o.trim = time.AfterFunc(trimDelay, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.trim = nil
		if o.ended {
			return
		}

		if err := o.spool.Trim(); err != nil {
			o.k.logf("%s of %s: %v", o.roles.Name, o.id, err)
		}
	})
}
