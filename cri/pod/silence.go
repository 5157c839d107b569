package pod

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"crisp/runtime/keeper/client"
)

const (
	// pingPeriod is how often the keeper is asked whether it answers, and how long it
	// has for that.
	pingPeriod = 5 * time.Second
	// silencePatience is how long it may be silent until no pod should be sent to the
	// node: an overloaded machine is no reason.
	silencePatience = 20 * time.Second
)

// silence is since when the keeper has not answered.
type silence struct {
	since atomic.Pointer[time.Time] // nil: it has
}

// note notes whether the keeper has answered what it was asked at a time, and reports
// whether that is new.
func (s *silence) note(asked time.Time, answered bool) bool {
	if answered {
		return s.since.Swap(nil) != nil
	}
	return s.since.CompareAndSwap(nil, &asked)
}

// watchKeeper asks the keeper from time to time until the manager is closed: one that is
// stopped, or hangs, keeps its connection.
func (m *Manager) watchKeeper() {
	tick := time.NewTicker(pingPeriod)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
			m.pingKeeper()
		}
	}
}

func (m *Manager) pingKeeper() {
	ctx, cancel := context.WithTimeout(m.ctx, pingPeriod)
	defer cancel()
	asked := time.Now()
	err := m.Keeper.Client().Ping(ctx)
	// A lost connection is not silence: another keeper follows.
	silent := err != nil && !errors.Is(err, client.ErrLost) && m.ctx.Err() == nil
	switch isNew := m.silence.note(asked, !silent); {
	case isNew && silent:
		klog.ErrorS(m.silent(), "The keeper does not answer")
	case isNew && m.ctx.Err() == nil:
		klog.InfoS("The keeper answers again")
	}
}

// silent says that the keeper has not answered, since when and in which state its process
// is; nil if it has.
func (m *Manager) silent() error {
	since := m.silence.since.Load()
	if since == nil {
		return nil
	}
	pid := m.Keeper.Client().PID()
	return fmt.Errorf("%w for %v (process %d, %s)", client.ErrSilent, time.Since(*since).Round(time.Second), pid, processState(pid))
}
