package cni

import (
	"slices"
	"sync"
	"time"
)

// Running is a call of a plugin that goes on.
type Running struct {
	// Plugin is its type, Command CNI's verb.
	Plugin  string    `json:"plugin"`
	Command string    `json:"command"`
	Began   time.Time `json:"began"`
	// Stdout and Stderr are the ends of what it has printed so far, any bytes.
	Stdout string `json:"stdout,omitempty"`
	Stderr string `json:"stderr,omitempty"`
}

// maxPrinted bounds what is told of an output, in bytes.
const maxPrinted = 1 << 10

// calls are the calls of plugins that go on.
type calls struct {
	mu  sync.Mutex
	all map[*running]bool // guarded by mu
}

// running is a call of a plugin for a pod.
type running struct {
	id             string
	of             Running
	stdout, stderr *bounded // nil for a builtin plugin
}

// begin notes a call until end.
func (c *calls) begin(one *running) (end func()) {
	one.of.Began = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[*running]bool{}
	}
	c.all[one] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.all, one)
	}
}

// Running lists the calls for a pod that go on, the oldest first.
func (c *Client) Running(id string) []Running {
	k := &c.runner.calls.mu
	k.Lock()
	defer k.Unlock()
	var list []Running
	for one := range c.runner.calls.all {
		if one.id == id {
			out := one.of
			out.Stdout, out.Stderr = one.stdout.end(), one.stderr.end()
			list = append(list, out)
		}
	}
	slices.SortFunc(list, func(a, b Running) int { return a.Began.Compare(b.Began) })
	return list
}
