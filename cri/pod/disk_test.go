package pod

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDisk counts what a snapshot shares with a pod that is being made of it once, as the
// snapshot's, and what is not finished apart.
func TestDisk(t *testing.T) {
	m := &Manager{Options: Options{Root: t.TempDir()}}
	if list, other := m.Disk(t.Context()); len(list) != 0 || other != 0 {
		t.Errorf("of nothing: %+v, %d", list, other)
	}

	write := func(size int, path ...string) string {
		t.Helper()
		file := filepath.Join(append([]string{m.Root}, path...)...)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	shared := write(1<<20, snapshotsDir, "ready", "container-0", "checkpoint", "pages-1.img")
	write(2<<20, snapshotsDir, unfinished+"0123", "container-0", "pages-1.img")
	own := write(4<<20, stagesDir, "id", "pages-2.img")
	if err := os.Link(shared, filepath.Join(filepath.Dir(own), "pages-1.img")); err != nil {
		t.Fatal(err)
	}

	list, other := m.Disk(t.Context())
	const directories = 64 << 10
	if len(list) != 1 || list[0].Name != "ready" || list[0].Bytes < 1<<20 || list[0].Bytes > 1<<20+directories {
		t.Errorf("snapshots: %+v", list)
	}
	if other < 6<<20 || other > 6<<20+directories {
		t.Errorf("other: %d bytes", other)
	}

	// Without the snapshot its pages are the pod's.
	if err := os.RemoveAll(m.snapshotPath("ready")); err != nil {
		t.Fatal(err)
	}
	if list, other := m.Disk(t.Context()); len(list) != 0 || other < 7<<20 {
		t.Errorf("without the snapshot: %+v, %d", list, other)
	}
}
