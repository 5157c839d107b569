package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"crisp/runtime/procstat"
	"crisp/runtime/rootpath"
)

// resumePatience is how long a CRIU that a killed daemon has left may go on.
const resumePatience = 2 * time.Minute

// resume thaws a container that the last daemon had frozen, once CRIU has left
// it: killed, CRIU would leave its own code in the processes, and at its end it
// freezes them again.
func (p *pod) resume(ctx context.Context, c *Container) {
	f := &frozen{c: c}
	var err error
	if f.group, err = p.groupOf(c); err != nil {
		warn(err, "thaw a container after a crash", "container", c.ID)
		return
	}

	for end := time.Now().Add(resumePatience); c.Process != nil && procstat.Traced(c.Process.Pid) && time.Now().Before(end); {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
	release, err := p.lock(ctx)
	if err != nil {
		return // the daemon ends
	}
	defer release()
	if c.Process != nil {
		warn(p.unlockNetwork(c.Process.Pid), "let a container's connections go on", "container", c.ID)
	}
	// What CRIU does last is to freeze them.
	for range 2 {
		if err := f.group.Thaw(ctx); err != nil {
			warn(err, "thaw a container after a crash", "container", c.ID)
			return
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
	if err := p.thaw(ctx, f); err != nil {
		warn(err, "thaw a container after a crash", "container", c.ID)
		return
	}
	klog.InfoS("Thawed a container that was frozen for a checkpoint when the daemon ended", "container", c.ID)
}

// dropStages removes what the last daemon has left of archives that it was putting
// together, in the background.
func (m *Manager) dropStages() {
	dir, err := os.Open(filepath.Join(m.Root, stagesDir))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	var left []string
	if err == nil {
		left, err = dir.Readdirnames(0)
	}
	if err != nil {
		warn(err, "look for unfinished checkpoints")
		return
	}

	m.wg.Go(func() {
		defer dir.Close()
		for _, name := range left {
			warn(rootpath.RemoveAll(m.ctx, dir, name), "remove an unfinished checkpoint")
		}
	})
}
