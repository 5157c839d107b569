package pod

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"crisp/runtime/rootpath"
)

// SnapshotDisk is what a snapshot takes of the disk, in bytes.
type SnapshotDisk struct {
	Name  string `json:"name"`
	Bytes uint64 `json:"bytes"`
}

// Disk measures what snapshots take of the disk, damaged ones too, and, in bytes, what is
// kept of checkpoints, snapshots and moves while they are made, restored or removed. Files
// that a pod shares with the snapshot that it is being made of count as the snapshot's.
func (m *Manager) Disk(ctx context.Context) (snapshots []SnapshotDisk, other uint64) {
	snapshots = []SnapshotDisk{}
	meter, drafts := rootpath.NewMeter(), []string{}
	for _, path := range below(filepath.Join(m.Root, snapshotsDir)) {
		if name := filepath.Base(path); strings.HasPrefix(name, unfinished) {
			drafts = append(drafts, path)
		} else {
			snapshots = append(snapshots, SnapshotDisk{name, sizeOf(ctx, meter, path)})
		}
	}

	for _, path := range append(drafts, below(filepath.Join(m.Root, stagesDir))...) {
		other += sizeOf(ctx, meter, path)
	}
	return snapshots, other
}

// below lists the paths of what is in a directory.
func below(dir string) (paths []string) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		warn(err, "measure what is in "+dir)
	}
	for _, e := range entries {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	return paths
}

// sizeOf is the size of a directory, as far as it can be measured: it may be removed
// meanwhile.
func sizeOf(ctx context.Context, meter *rootpath.Meter, path string) uint64 {
	dir, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer dir.Close()
	u, _ := meter.Measure(ctx, dir) // a part of it is better than nothing
	return u.Bytes
}
