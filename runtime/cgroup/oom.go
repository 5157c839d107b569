package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// OOMKills counts the OOM kills in the group. On version 1, groups created
// inside the container are not counted.
//
// systemd removes a scope as soon as its last process has exited, and its
// counter with it, but the parent's counter includes all groups that ever were
// below it. So the count of a removed group is the parent's minus that of the
// existing groups, minus that difference when the group started, minus what
// other removed groups have claimed since.
//
// Version 1 counts each group alone. There an event is waited for instead. The
// kernel sends those of a parent to all groups below, so they only count if killed
// says that a SIGKILL has ended the group's first process.
func (g *Group) OOMKills(killed bool) (uint64, error) {
	var r reader
	kills, err := g.oomKills(&r)
	if g.watchesParent() {
		if err == nil {
			g.node.oom.claim(g.at.parentRel, int64(kills))
			return kills, nil
		}
		if isGone(err) {
			kills, err = g.inheritedKills(&r)
		}
	}
	if err != nil && isGone(err) && g.events != nil {
		return g.notifiedKills(killed)
	}
	if err != nil {
		return 0, g.fail("count OOM kills of", err)
	}

	return kills, nil
}

func (g *Group) oomKills(r *reader) (uint64, error) {
	name := "memory.oom_control"
	if g.node.v2 {
		name = "memory.events"
	}
	return oomKills(r, g.dir("memory"), name)
}

func oomKills(r *reader, dir, file string) (kills uint64, err error) {
	err = r.table(dir, file, func(key string, v uint64) {
		if key == "oom_kill" {
			kills = v
		}
	})
	return kills, err
}

// watchesParent reports whether the group may be removed before its counter is read.
func (g *Group) watchesParent() bool { return g.node.v2 && g.node.driver == Systemd }

// noteParent records the parent's count before the group's start, 0 if the
// parent does not exist yet.
func (g *Group) noteParent() {
	if !g.watchesParent() {
		return
	}
	var r reader
	lost, err := g.node.lostKills(&r, g.at.parentRel)
	if err == nil {
		g.killsBefore = lost - g.node.oom.claimed(g.at.parentRel)
	}
}

// inheritedKills are the OOM kills of a removed group.
func (g *Group) inheritedKills(r *reader) (uint64, error) {
	lost, err := g.node.lostKills(r, g.at.parentRel)
	if err != nil {
		return 0, err
	}
	kills := max(0, lost-g.node.oom.claimed(g.at.parentRel)-g.killsBefore)
	g.node.oom.claim(g.at.parentRel, kills)
	return uint64(kills), nil
}

// lostKills are the OOM kills of a parent that are not in the counters of its
// child groups.
func (n *Node) lostKills(r *reader, rel string) (int64, error) {
	dir := filepath.Join(n.root, rel)
	all, err := oomKills(r, dir, "memory.events")
	if err != nil {
		return 0, err
	}

	names, err := subdirs(dir)
	if err != nil {
		return 0, err
	}

	lost := int64(all)
	for _, name := range names {
		kills, err := oomKills(r, filepath.Join(dir, name), "memory.events")
		if err != nil && !isGone(err) {
			return 0, err
		}
		lost -= int64(kills)
	}

	return lost, nil
}

// oomClaims are the OOM kills of removed groups, by parent.
type oomClaims struct {
	mu    sync.Mutex
	kills map[string]int64 // guarded by mu
}

func (c *oomClaims) claim(parent string, kills int64) {
	if kills == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kills == nil {
		c.kills = map[string]int64{}
	}
	c.kills[parent] += kills
}

func (c *oomClaims) claimed(parent string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kills[parent]
}

// goneTime is how long the kernel may take to tell that a group was removed, readTime
// how long to read what it has told.
const goneTime, readTime = 100 * time.Millisecond, 10 * time.Millisecond

// WatchOOM has the kernel note each time that the group is out of memory, if
// systemd may remove it before its counter is read, until [Group.OOMKills]. Without
// that, the reason of an exit may be missing. [Group.Attach] includes it.
func (g *Group) WatchOOM() {
	if g.node.v2 || g.node.driver != Systemd || g.dir("memory") == "" {
		return
	}
	events, err := oomEvents(g.dir("memory"))
	if err != nil {
		return
	}
	if above, err := oomEvents(filepath.Dir(g.dir("memory"))); err == nil {
		g.events, g.above = events, above
	} else {
		events.Close()
	}
}

// oomEvents returns an eventfd that counts out-of-memory events of a group of
// version 1, and its removal: Documentation/admin-guide/cgroup-v1/memory.rst, 10.
func oomEvents(dir string) (*os.File, error) {
	control, err := openRaw(filepath.Join(dir, "memory.oom_control"), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(control)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}

	events := os.NewFile(uintptr(fd), "out-of-memory events")
	if err := writeFile(dir, "cgroup.event_control", fmt.Sprint(fd, " ", control)); err != nil {
		return nil, errors.Join(err, events.Close())
	}
	return events, nil
}

// notifiedKills counts the events of a removed group but for its removal, which
// the kernel tells a moment later, and, unless killed, for its parent's.
func (g *Group) notifiedKills(killed bool) (uint64, error) {
	defer g.events.Close()
	defer g.above.Close()
	end := time.Now().Add(goneTime)
	var seen uint64
	for seen < 2 {
		n, err := countEvents(g.events, end)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return 0, g.fail("count OOM events of", err)
		}
		seen += n
	}

	kills := max(seen, 1) - 1
	if kills == 0 || killed {
		return kills, nil
	}
	_, gone := os.Stat(filepath.Dir(g.dir("memory")))
	above, err := countEvents(g.above, time.Now().Add(readTime))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, g.fail("count OOM events above", err)
	}
	if gone != nil && above > 0 {
		above-- // its removal
	}
	return kills - min(above, kills), nil
}

// countEvents reads the number of events since the last call, and waits for one.
func countEvents(events *os.File, end time.Time) (uint64, error) {
	if err := events.SetReadDeadline(end); err != nil {
		return 0, err
	}
	var count [8]byte
	if _, err := events.Read(count[:]); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(count[:]), nil
}
