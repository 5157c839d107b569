package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/network/cni"
	"crisp/network/own"
	"crisp/runtime/checkpoint"
	"crisp/runtime/criu"
)

// configuration checks what the configuration refers to.
func configuration(_ context.Context, n *Node) []Finding {
	if err := n.Examine(); err != nil {
		return []Finding{fail("correct the configuration; crisp config default documents each key", "%v", err)}
	}
	return []Finding{ok("it is valid on this machine")}
}

// cniConfiguration checks the network configuration and that its plugins exist.
func cniConfiguration(_ context.Context, n *Node) []Finding {
	conf, err := cni.Load(n.Config.CNIConfDir)
	switch {
	case errors.Is(err, cni.ErrNoConfig) && n.Config.DefaultNetwork:
		return []Finding{ok("there is no configuration in %s: pods are attached to crisp's own network", n.Config.CNIConfDir)}
	case errors.Is(err, cni.ErrNoConfig):
		return []Finding{fail("install a network add-on, or write a configuration with crisp network init", "there is no configuration in %s: only pods in the node's network can run", n.Config.CNIConfDir)}
	case err != nil:
		return []Finding{fail("correct or remove the file: the first of the directory applies", "%v", err)}
	}

	var list struct {
		Plugins []struct{ Type string }
	}
	if err := json.Unmarshal(conf.Bytes(), &list); err != nil {
		return []Finding{fail("correct the file", "%s: %v", conf.File, err)}
	}
	var found []Finding
	for _, p := range list.Plugins {
		if p.Type != own.Type && !executable(n.Config.CNIBinDirs, p.Type) {
			found = append(found, fail("install the plugin: Debian has it in containernetworking-plugins, or the network add-on brings it", "%s needs plugin %q, which is in none of %s", conf.File, p.Type, strings.Join(n.Config.CNIBinDirs, ", ")))
		}
	}
	return unless(found, "network %s of %s, with its plugins", conf.Name(), conf.File)
}

// executable reports whether a program is in one of the directories.
func executable(dirs []string, name string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		st, err := os.Stat(filepath.Join(dir, name))
		return err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
	})
}

// Shares of a file system that are to be free, in percent. Below the first, kubelet
// removes images and evicts pods.
const (
	leastFree = 10
	leastLeft = 3
)

// disk checks the space for images and records.
func disk(_ context.Context, n *Node) []Finding {
	var found []Finding
	for _, dir := range []string{n.Config.Root, n.Config.State} {
		var st unix.Statfs_t
		at := existing(dir)
		if err := unix.Statfs(at, &st); err != nil {
			found = append(found, fail("", "file system of %s: %v", dir, err))
			continue
		}

		for what, free := range map[string]int{"space": percent(st.Bavail, st.Blocks), "inodes": percent(st.Ffree, st.Files)} {
			switch {
			case free < leastLeft:
				found = append(found, fail("free some: crisp df says by what it is used", "%d%% of the %s of %s is free: pods cannot be created", free, what, dir))
			case free < leastFree:
				found = append(found, warn("free some: crisp df says by what it is used", "%d%% of the %s of %s is free: kubelet evicts pods", free, what, dir))
			default:
				found = append(found, ok("%d%% of the %s of %s is free", free, what, dir))
			}
		}
	}
	slices.SortFunc(found, func(a, b Finding) int { return strings.Compare(a.Text, b.Text) })
	return found
}

// existing is a directory, or the nearest one above it that exists.
func existing(dir string) string {
	for dir != "/" {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

// percent is a share; of nothing, everything is free.
func percent(part, whole uint64) int {
	if whole == 0 {
		return 100
	}
	return int(float64(part) / float64(whole) * 100)
}

// daemon checks that one serves, and can start containers.
func daemon(_ context.Context, n *Node) []Finding {
	state, err := n.now()
	switch {
	case err != nil:
		return []Finding{warn("start it: systemctl start crisp", "%v", err)}
	case state.Keeper != "":
		return []Finding{fail("see the journals of crisp and crisp-keeper", "no container can be started: %s", state.Keeper)}
	case !state.Ready:
		return []Finding{warn("wait; crisp debug goroutines shows what it does", "the daemon (pid %d) is starting", state.PID)}
	}
	return []Finding{ok("crisp %s (pid %d) serves %s", state.Version, state.PID, n.Config.Listen)}
}

// trusted says whose checkpoints are restored.
func trusted(from []string) Finding {
	switch {
	case slices.Contains(from, checkpoint.Anybody):
		return warn(`set restore_from to "this-node", or to the keys that crisp checkpoint --key prints on the nodes that are trusted`,
			"checkpoints of everybody are restored: who can write one chooses the memory of a container's processes, and what they have open")
	case len(from) == 0:
		return ok("no checkpoints are restored")
	}
	return ok("checkpoints are restored from: %s", strings.Join(from, ", "))
}

// checkpoints looks for CRIU, which a node may do without.
func checkpoints(ctx context.Context, n *Node) []Finding {
	p, err := criu.Find(ctx, n.Config.CRIUPath)
	switch {
	case err == nil:
		return []Finding{ok("containers can be checkpointed: %s is CRIU %s", p.Path, p.Version), trusted(n.Config.RestoreFrom)}
	case n.Config.CRIUPath == "":
		return []Finding{ok("containers cannot be checkpointed: %v", err)}
	default:
		return []Finding{warn("install it, or correct criu_path", "containers cannot be checkpointed: %v", err)}
	}
}
