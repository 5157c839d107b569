package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"crisp/runtime/durable"
)

// leftDir is the directory of the state that has a file for each cgroup that was left:
// it is named after the container or pod, and contains the path.
const leftDir = "cgroups"

// Times between two looks at the cgroups that were left, and for one of them. Who does
// not reap a process at once may never do so.
const (
	minLeftWait = time.Second
	maxLeftWait = 30 * time.Second
	leftTimeout = 5 * time.Second
)

// leftGroups are cgroups of removed containers and pods of which the kernel did not let go:
// all of their processes have ended, but were not reaped. They are removed once they were.
type leftGroups struct {
	dir string
	// more has a token when one was added.
	more chan struct{}

	mu    sync.Mutex
	paths map[string]string // by ID
}

// openLeft returns what the last daemon has left.
func openLeft(dir string) (*leftGroups, error) {
	l := &leftGroups{dir: dir, more: make(chan struct{}, 1), paths: map[string]string{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create directory for cgroups that were left: %w", err)
	}
	warn(durable.RemoveTemps(dir), "remove unfinished files", "directory", dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list cgroups that were left: %w", err)
	}

	for _, e := range entries {
		path, err := os.ReadFile(filepath.Join(dir, e.Name()))
		warn(err, "read which cgroup was left", "id", e.Name())
		if err == nil {
			l.paths[e.Name()] = string(path)
		}
	}
	return l, nil
}

// add leaves a cgroup. The next daemon knows it too.
func (l *leftGroups) add(path string) error {
	id := path[strings.LastIndexAny(path, "/:")+1:]
	if err := durable.ReplaceFile(filepath.Join(l.dir, id), []byte(path), 0o600); err != nil {
		return fmt.Errorf("leave cgroup %s: %w", path, err)
	}
	l.mu.Lock()
	l.paths[id] = path
	l.mu.Unlock()

	select {
	case l.more <- struct{}{}:
	default:
	}
	return nil
}

func (l *leftGroups) list() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.paths)
}

func (l *leftGroups) drop(id string) {
	l.mu.Lock()
	delete(l.paths, id)
	l.mu.Unlock()
	if err := os.Remove(filepath.Join(l.dir, id)); !errors.Is(err, os.ErrNotExist) {
		warn(err, "forget a cgroup that was left", "id", id)
	}
}

// removeLeft removes the cgroups that were left, each once it is empty, until the daemon
// ends. While there is none it sleeps.
func (m *Manager) removeLeft(ctx context.Context) {
	for wait := minLeftWait; ; wait = min(2*wait, maxLeftWait) {
		var look <-chan time.Time
		if len(m.left.list()) > 0 {
			look = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-m.left.more:
			// However many follow, there is one look for all of them.
			wait = minLeftWait
			if !pauseFor(ctx, wait) {
				return
			}
		case <-look:
		}

		for id, path := range m.left.list() {
			if m.removeLeftGroup(ctx, id, path) {
				m.left.drop(id)
			}
		}
	}
}

// pauseFor returns false if ctx ends first.
func pauseFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// removeLeftGroup reports whether a cgroup is gone.
func (m *Manager) removeLeftGroup(ctx context.Context, id, path string) bool {
	m.mu.RLock()
	used := m.pods[id] != nil || m.containers[id] != nil
	m.mu.RUnlock()
	if used { // its removal did not get further, and will be tried again
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, leftTimeout)
	defer cancel()

	group, err := m.Cgroups.Open(path)
	some := false
	if err == nil {
		some, err = group.Populated(ctx)
	}
	if err == nil && !some {
		err = group.Remove(ctx)
	}
	if errors.Is(err, os.ErrNotExist) {
		return true
	}

	warn(err, "remove a cgroup that was left; will retry", "cgroup", path)
	if err != nil || some {
		return false
	}
	klog.InfoS("Removed a cgroup that was left", "cgroup", path)
	return true
}
