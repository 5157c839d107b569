package criu

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

// EnterNamespaces makes images of a container that has namespaces of its pod, user, UTS
// and IPC, those of one without them. A CRIU that is in these namespaces restores the
// processes there, and leaves the namespaces as they are: their names of hosts and
// their limits are the new pod's. Its rights are those of the user namespace, and so a
// checkpoint can have it do no more than the pod could. What the images say of users is
// as the container sees them. They are those that [Inventory.Check] has accepted.
//
// The files get an owner, who is the root of the user namespace.
func EnterNamespaces(ctx context.Context, images string, kinds []specs.LinuxNamespaceType, owner rootpath.Owner) error {
	d, err := openImages(ctx, images)
	if err == nil {
		defer d.close()
		err = d.enter(images, kinds, owner)
	}
	if err != nil {
		return fmt.Errorf("prepare a checkpoint for the pod's namespaces: %w", err)
	}
	return nil
}

func (d *imageDir) enter(images string, kinds []specs.LinuxNamespaceType, owner rootpath.Owner) error {
	all := d.names()
	entry, err := one[*inventory.InventoryEntry](d, "inventory.img", magicInventory, maxEntry)
	if err != nil {
		return err
	}

	for _, name := range all {
		if slices.ContainsFunc(kinds, func(k specs.LinuxNamespaceType) bool { return strings.HasPrefix(name, string(k)+"ns-") }) {
			if err := unix.Unlinkat(int(d.dir.Fd()), name, 0); err != nil {
				return fmt.Errorf("remove %s: %w", name, err)
			}
			continue
		}
		if strings.HasPrefix(name, "ids-") {
			ids, err := one[*criu_core.TaskKobjIdsEntry](d, name, magicIDs, maxEntry)
			if err != nil {
				return err
			}
			enterIDs(ids, entry.GetRootIds(), kinds)
			if err := replaceImage(filepath.Join(images, name), magicIDs, ids); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if err := d.give(images, name, owner); err != nil {
			return fmt.Errorf("give %s to user %d: %w", name, owner.UID, err)
		}
	}
	if err := d.dir.Chown(owner.UID, owner.GID); err != nil {
		return fmt.Errorf("give images to user %d: %w", owner.UID, err)
	}
	return nil
}

// give gives a file to an owner, unless it has it already. One that others have, too, such as
// a snapshot, stays theirs and is copied.
func (d *imageDir) give(images, name string, owner rootpath.Owner) error {
	f, err := rootpath.OpenRegular(d.dir, name, math.MaxInt64)
	if err != nil {
		return err
	}
	defer f.Close()

	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if int(st.Uid) == owner.UID && int(st.Gid) == owner.GID {
		return nil // memory is not copied for nothing
	}
	if st.Nlink > 1 {
		if err := replaceFile(filepath.Join(images, name), f); err != nil {
			return err
		}
	}
	return unix.Fchownat(int(d.dir.Fd()), name, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW)
}

// enterIDs has a process be in the namespaces in which CRIU is. One that has ended may be
// in none.
func enterIDs(ids, criu *criu_core.TaskKobjIdsEntry, kinds []specs.LinuxNamespaceType) {
	for _, kind := range kinds {
		var of, in **uint32
		switch kind {
		case specs.UserNamespace:
			of, in = &ids.UserNsId, &criu.UserNsId
		case specs.UTSNamespace:
			of, in = &ids.UtsNsId, &criu.UtsNsId
		case specs.IPCNamespace:
			of, in = &ids.IpcNsId, &criu.IpcNsId
		default:
			continue
		}
		if *of != nil && **of != 0 {
			*of = *in
		}
	}
}
