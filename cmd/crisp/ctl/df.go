package ctl

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cri/admin"
	"crisp/cri/client"
	"crisp/cri/pod"
)

// dfCommand is the command df.
func dfCommand() *cobra.Command {
	return listing(&cobra.Command{
		Use: "df [FLAGS]", Short: "Show what uses the disk: images, layers, containers, logs, snapshots",
		Long: `Show what uses the disk. With -o wide, each image follows, with what only it uses
and what it shares with others, each container, with its writable layer and its logs,
and each snapshot.`,
		Args: cli.Exactly(0, "no arguments"),
	}, func(ctx context.Context, s *session, f format, _ []string) error {
		var d admin.Disk
		if err := s.ask(ctx, admin.DiskPath, &d); err != nil {
			return err
		}
		if !f.isTable() {
			return f.print(s.out, d, nil)
		}

		tables := []*table{diskTable(d)}
		if f.wide() {
			tables = append(tables, imageDiskTable(d), containerDiskTable(d), snapshotDiskTable(d))
		}
		for i, t := range tables {
			if i > 0 {
				fmt.Fprintln(s.out)
			}
			if err := t.print(s.out); err != nil {
				return err
			}
		}
		return nil
	})
}

func diskTable(d admin.Disk) *table {
	var writable, logs, snapshots, saved uint64
	for _, c := range d.Containers {
		writable += c.Writable
		logs += c.Logs
	}

	for _, s := range d.Snapshots {
		snapshots += s.Bytes
	}
	ofCheckpoints := 0
	for _, im := range d.Images {
		if im.Checkpoint != "" {
			saved += im.Exclusive
			ofCheckpoints++
		}
	}

	t := newTable("WHAT", "SIZE", "")
	t.add("images, compressed", bytesOf(d.Blobs), fmt.Sprintf("%d images", len(d.Images)))
	t.add("images, unpacked", bytesOf(d.Layers), bytesOf(d.Kept)+" of both is kept for containers and pulls only")
	t.add("images of checkpoints", bytesOf(saved), fmt.Sprintf("%d images, in both of the above", ofCheckpoints))
	t.add("partial downloads", bytesOf(d.Parts), "the next pulls resume them")
	t.add("writable layers", bytesOf(writable), fmt.Sprintf("%d containers", len(d.Containers)))
	t.add("snapshots", bytesOf(snapshots), fmt.Sprintf("%d snapshots", len(d.Snapshots)))
	t.add("checkpoints", bytesOf(d.Checkpoints), "while they are made, restored or removed")
	t.add("logs", bytesOf(logs), "not in "+d.Root)
	t.add("free", bytesOf(d.Free), "of "+bytesOf(d.Size)+", the file system of "+d.Root)
	return t
}

func imageDiskTable(d admin.Disk) *table {
	t := newTable("IMAGE", "EXCLUSIVE", "SHARED")
	for _, i := range d.Images {
		t.add(i.Name, bytesOf(i.Exclusive), bytesOf(i.Shared))
	}
	return t
}

func snapshotDiskTable(d admin.Disk) *table {
	slices.SortStableFunc(d.Snapshots, func(a, b pod.SnapshotDisk) int { return cmp.Compare(b.Bytes, a.Bytes) })
	t := newTable("SNAPSHOT", "SIZE")
	for _, s := range d.Snapshots {
		t.add(s.Name, bytesOf(s.Bytes))
	}
	return t
}

func containerDiskTable(d admin.Disk) *table {
	slices.SortStableFunc(d.Containers, func(a, b admin.ContainerDisk) int { return cmp.Compare(b.Writable+b.Logs, a.Writable+a.Logs) })
	t := newTable("CONTAINER", "WRITABLE LAYER", "LOGS", "ID")
	for _, c := range d.Containers {
		size := bytesOf(c.Writable)
		if c.Partial {
			size = "at least " + size
		}
		t.add(c.Name, size, bytesOf(c.Logs), client.Short(c.ID))
	}
	return t
}
