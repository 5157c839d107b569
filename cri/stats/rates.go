package stats

import (
	"math/bits"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rates keeps a reading of CPU time for each container and pod, to compute its
// rate.
type rates struct {
	window time.Duration

	mu   sync.Mutex
	last map[string]reading
}

type reading struct {
	// at and usage are the reading up to which the current rate was measured.
	at    time.Time
	usage uint64
	// most is the largest reported usage.
	most  uint64
	cores *runtimeapi.UInt64Value
}

// sample records a reading and returns the usage to report, which never
// decreases, and the rate in nanoseconds a second, nil after the first reading.
func (r *rates) sample(id string, at time.Time, usage uint64) (uint64, *runtimeapi.UInt64Value) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = make(map[string]reading)
	}

	last, ok := r.last[id]
	switch elapsed := at.Sub(last.at); {
	case !ok:
		last.at, last.usage = at, usage
	case usage < last.usage:
		// A container dropped out of the sum: restart the measurement here.
		last.at, last.usage = at, usage
	case elapsed >= r.window && elapsed > 0:
		last.cores = value(perSecond(usage-last.usage, elapsed))
		last.at, last.usage = at, usage
	}

	last.most = max(last.most, usage)
	r.last[id] = last
	return last.most, last.cores
}

// perSecond is used * 1s / elapsed without overflow.
func perSecond(used uint64, elapsed time.Duration) uint64 {
	hi, lo := bits.Mul64(used, uint64(time.Second))
	if hi >= uint64(elapsed) {
		return 0 // no machine reaches that rate
	}
	q, _ := bits.Div64(hi, lo, uint64(elapsed))
	return q
}

// keep drops every entry for which has is false.
func (r *rates) keep(has func(id string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.last {
		if !has(id) {
			delete(r.last, id)
		}
	}
}
