package admin

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"crisp/cri/pod"
	"crisp/image"
)

// Disk is what is used of the disk, in bytes.
type Disk struct {
	Root string `json:"root"`
	// Size and Free are those of the file system of Root.
	Size uint64 `json:"size"`
	Free uint64 `json:"free"`
	image.Disk
	Containers []ContainerDisk `json:"containers"`
	// Snapshots are those of pods. Checkpoints is what is kept of checkpoints, snapshots and
	// moves while they are made, restored or removed; what they share with a snapshot
	// counts there.
	Snapshots   []pod.SnapshotDisk `json:"snapshots"`
	Checkpoints uint64             `json:"checkpoints"`
}

// ContainerDisk is what one container has written.
type ContainerDisk struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	// Writable is its writable layer, at least if Partial; Logs are its log files,
	// with those that were rotated.
	Writable uint64 `json:"writable"`
	Partial  bool   `json:"partial,omitempty"`
	Logs     uint64 `json:"logs"`
}

// Disk measures the disk usage. Writable layers are walked through.
func (s *Server) Disk(ctx context.Context) Disk {
	out := Disk{Root: s.Root, Disk: s.Images.Disk(), Containers: []ContainerDisk{}, Snapshots: []pod.SnapshotDisk{}}
	var st unix.Statfs_t
	if unix.Statfs(s.Root, &st) == nil {
		out.Size, out.Free = st.Blocks*uint64(st.Bsize), st.Bavail*uint64(st.Bsize)
	}

	m := s.pods.Load()
	if m == nil {
		return out
	}
	out.Snapshots, out.Checkpoints = m.Disk(ctx)
	for _, r := range m.Sandboxes() {
		for _, c := range podOf(r).Containers {
			one := ContainerDisk{Name: r.Name() + "/" + c.Name, ID: c.ID, Logs: sizeOfLogs(c.LogPath)}
			u, err := s.Images.Usage(ctx, c.ID)
			one.Writable, one.Partial = u.Bytes, u.Partial || err != nil
			out.Containers = append(out.Containers, one)
		}
	}
	return out
}

// sizeOfLogs is the size of a log and of those that kubelet has rotated, whose names
// begin with its.
func sizeOfLogs(path string) uint64 {
	if path == "" {
		return 0
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return 0
	}
	sum, base := uint64(0), filepath.Base(path)
	for _, e := range entries {
		if name := e.Name(); name != base && (len(name) <= len(base) || name[:len(base)+1] != base+".") {
			continue
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			sum += uint64(info.Size())
		}
	}
	return sum
}
