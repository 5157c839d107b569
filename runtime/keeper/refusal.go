package keeper

import (
	"errors"
	"time"
)

const (
	// patience is how long a log may refuse writes before lines are dropped:
	// time to free a full disk, or to replace a broken one. Until then the
	// writer blocks once its pipe is full, and nothing is lost.
	patience = 30 * time.Second
	// exitPatience is how long the report of an exit waits for the log.
	exitPatience = 2 * time.Second
	// firstRetry and lastRetry are the first and the longest delay between attempts.
	firstRetry, lastRetry = 10 * time.Millisecond, time.Second
)

// errRefused is a failed write to a log. The bytes are still held, for a retry.
var errRefused = errors.New("log refuses writes")

// refusal is a period in which a log refuses writes.
type refusal struct {
	since time.Time // zero while writes succeed
	next  time.Duration
	cause error
	lost  uint64 // dropped lines of the log when it began
}

func (r *refusal) on() bool { return !r.since.IsZero() }

// writeLocked logs the held bytes, with or without an unfinished last line. It
// is errRefused as long as the write is to be retried.
func (o *output) writeLocked(all bool) error {
	write := o.log.Write
	if all {
		write = o.log.End
	}

	r := &o.refusal
	err := write(o.stream)
	switch {
	case err == nil && r.on():
		o.k.logf("%s of %s: log writable again after %v, %d lines were dropped", o.roles.Name, o.id, time.Since(r.since).Round(time.Second), o.log.Dropped()-r.lost)
		*r = refusal{}
		return nil
	case err == nil:
		return nil
	case !r.on():
		*r = refusal{since: time.Now(), next: firstRetry, cause: err, lost: o.log.Dropped()}
		o.k.logf("%s of %s: %v; the container's writes block until a retry succeeds", o.roles.Name, o.id, err)
	case time.Since(r.since) > patience:
		// From now on each read retries.
		o.log.Drop(o.stream)
		return nil
	}

	return errRefused
}

// await waits until the next attempt is due or stop is closed.
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

// awaitOr is await that returns an error when late has fired or the entry is released.
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

// trimLaterLocked schedules a trim of the spool.
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
