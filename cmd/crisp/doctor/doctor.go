package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"crisp/cri/admin"
	"crisp/cri/config"
	"crisp/runtime/host"
)

// Status is the result of a check.
type Status string

// Results of checks.
const (
	OK   Status = "OK"
	Warn Status = "WARN"
	Fail Status = "FAIL"
)

// Finding is what a check has found.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	Text   string `json:"text"`
	// Todo is what to do about it, and Fixed that it was done.
	Todo  string `json:"todo,omitempty"`
	Fixed bool   `json:"fixed,omitempty"`

	fix func(context.Context) error
}

// Node is what is examined.
type Node struct {
	Config *config.Config
	Facts  host.Facts
	// Files are the node's, from the root directory.
	Files fs.FS
	// Examine checks what the configuration refers to.
	Examine func() error
	// State asks the daemon; an error means that none answers.
	State func(context.Context) (admin.State, error)
	// Settled is how long a leftover must have existed: what is younger may belong
	// to what is just being created or removed.
	Settled time.Duration

	// now is the daemon's state, which all checks of one examination share.
	now func() (admin.State, error)
}

// check is one of the table.
type check struct {
	name string
	run  func(context.Context, *Node) []Finding
}

// checks are made in this order.
func checks() []check {
	return []check{
		{"rights", rights}, {"kernel", kernel}, {"cgroups", cgroups}, {"sysctls", sysctls}, {"security modules", modules}, {"time", clock},
		{"configuration", configuration}, {"network", cniConfiguration}, {"registries", registries}, {"disk", disk}, {"checkpoints", checkpoints},
		{"daemon", daemon}, {"leftovers", leftovers},
	}
}

// Examine makes all checks. With repair it removes what is left of pods that no
// longer exist.
func Examine(ctx context.Context, node *Node, repair bool) []Finding {
	n := *node
	n.now = sync.OnceValues(func() (admin.State, error) { return n.State(ctx) })
	var all []Finding
	for _, c := range checks() {
		for _, f := range c.run(ctx, &n) {
			f.Check = c.name
			if repair && f.fix != nil {
				f.repair(ctx)
			}
			all = append(all, f)
		}
	}
	return all
}

// repair removes a leftover.
func (f *Finding) repair(ctx context.Context) {
	if err := f.fix(ctx); err != nil {
		f.Status, f.Todo = Fail, fmt.Sprintf("it could not be removed: %v", err)
		return
	}
	f.Status, f.Todo, f.Fixed = OK, "", true
}

// Worst is the worst result.
func Worst(all []Finding) Status {
	for _, s := range []Status{Fail, Warn} {
		if slices.ContainsFunc(all, func(f Finding) bool { return f.Status == s }) {
			return s
		}
	}
	return OK
}

// ok, warn and fail make findings.
func ok(format string, args ...any) Finding {
	return Finding{Status: OK, Text: fmt.Sprintf(format, args...)}
}

func warn(todo, format string, args ...any) Finding {
	return Finding{Status: Warn, Text: fmt.Sprintf(format, args...), Todo: todo}
}

func fail(todo, format string, args ...any) Finding {
	return Finding{Status: Fail, Text: fmt.Sprintf(format, args...), Todo: todo}
}

// unless is what was found, or that all is well.
func unless(found []Finding, format string, args ...any) []Finding {
	if len(found) > 0 {
		return found
	}
	return []Finding{ok(format, args...)}
}
