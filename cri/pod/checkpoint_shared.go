package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
	"crisp/runtime/checkpoint"
	"crisp/runtime/criu"
	"crisp/runtime/launch"
	"crisp/runtime/rootpath"
)

// sharedDir is where containers have the pod's shared memory.
const sharedDir = "/dev/shm"

// sharesMemory reports whether a container has the pod's shared memory, and not the node's, or a
// volume in its place.
func sharesMemory(s *specs.Spec) bool {
	at := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == sharedDir })
	return at >= 0 && s.Mounts[at].Type == "shm"
}

// openShared opens the pod's shared memory.
func (p *pod) openShared() (*os.File, error) { return launch.OpenShared(p.namespace("mnt")) }

// saveShared adds the content of the pod's shared memory to the first of the containers that are
// being saved, for all of them.
func (p *pod) saveShared(ctx context.Context, list []*frozen) error {
	if err := separate(ctx, list); err != nil {
		return err
	}
	var shared checkpoint.Shared
	for _, f := range list {
		shared.Names = append(shared.Names, f.links...)
	}
	if !slices.ContainsFunc(list, func(f *frozen) bool { return sharesMemory(f.spec) }) {
		return nil
	}

	root, err := p.openShared()
	if err != nil {
		return err
	}
	defer root.Close()
	shared.Root, shared.IDs = root, inside(list[0].spec)
	return list[0].stage.FillShared(ctx, shared)
}

// separate checks that no two containers have the same file open that has no name any more:
// after a restore each would have its own.
func separate(ctx context.Context, list []*frozen) error {
	if len(list) < 2 {
		return nil
	}

	of := map[[2]uint64]string{}
	for _, f := range list {
		files, err := criu.Nameless(ctx, f.stage.Images())
		if err != nil {
			return err
		}
		name := f.c.Config.Msg.GetMetadata().GetName()
		for _, id := range files {
			if other, ok := of[id]; ok && other != name {
				return fmt.Errorf("containers %s and %s share a file that has no name any more, of which each would get a copy: %w", other, name, ErrState)
			}
			of[id] = name
		}
	}
	return nil
}

// noteLinks notes which files have the names that CRIU has given them, as long as it is there:
// what is saved of the files is to have these names, too.
func (p *pod) noteLinks(ctx context.Context, f *frozen, externals []string, diff *checkpoint.Diff) error {
	links, err := criu.Links(ctx, f.stage.Images())
	if err != nil || len(links) == 0 {
		return err
	}
	var shared *os.File
	if sharesMemory(f.spec) {
		if shared, err = p.openShared(); err != nil {
			return err
		}
		defer shared.Close()
	}

	paths := map[criu.Link]string{}
	for _, l := range links {
		switch {
		case l.Mount == "/":
			name, err := nameOf(diff.Upper, strings.TrimPrefix(l.Path, "/"))
			if err != nil {
				return err
			}
			diff.Names = append(diff.Names, name)
		case l.Mount == sharedDir && shared != nil:
			name, err := nameOf(shared, strings.TrimPrefix(l.Path, sharedDir+"/"))
			if err != nil {
				return err
			}
			// Another container's may be the same.
			name.Path = path.Join(path.Dir(name.Path), f.c.ID[:16]+"-"+path.Base(name.Path))
			f.links, paths[l] = append(f.links, name), path.Join(sharedDir, name.Path)
		case slices.Contains(externals, fmt.Sprintf("mnt[%s]:%[1]s", l.Mount)):
			return fmt.Errorf("%w: a process has a file of the volume at %.200q open, under a name that it has no more", criu.ErrRefused, l.Mount)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	return criu.RenameLinks(ctx, f.stage.Images(), paths)
}

// nameOf is the name that a file has in a directory.
func nameOf(root *os.File, name string) (checkpoint.Name, error) {
	f, err := rootpath.OpenUnlinked(root, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return checkpoint.Name{}, fmt.Errorf("find the link that CRIU has made: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return checkpoint.Name{}, fmt.Errorf("find the link that CRIU has made: %w", err)
	}
	return checkpoint.Name{Path: name, ID: [2]uint64{uint64(st.Dev), st.Ino}}, nil
}

// refillFresh puts what was saved of a pod's shared memory into that of a new pod, which no
// process has yet.
func (p *pod) refillFresh(ctx context.Context, r RestoreRequest, origins map[string]*origin) error {
	node := spec.NamespaceMode(r.Config, spec.IPC) == runtimeapi.NamespaceMode_NODE
	for _, c := range r.Containers {
		o := origins[c.GetMetadata().GetName()]
		if !node {
			if err := p.refill(ctx, o.unpacked, p.refilling(true, nil)); err != nil {
				return err
			}
		}
		if err := o.unpacked.DropShared(); err != nil {
			return err
		}
	}
	return nil
}

// refillUsed puts what was saved of a pod's shared memory, with a container, into that of the
// pod in which it is started. Other containers may use it, and what is there stays.
func (p *pod) refillUsed(ctx context.Context, unpacked string, s *specs.Spec, needs criu.Needs) error {
	if !sharesMemory(s) {
		return nil
	}
	u, err := checkpoint.OpenSnapshot(unpacked).Read()
	if err != nil {
		return err
	}
	var needed []string
	for _, file := range needs.Open {
		if name, ok := strings.CutPrefix(file, sharedDir+"/"); ok {
			needed = append(needed, name)
		}
	}
	return p.refill(ctx, u, p.refilling(false, needed))
}

func (p *pod) refilling(fresh bool, needed []string) checkpoint.Refill {
	uids, gids := spec.IDMaps(p.record().Config.Msg)
	return checkpoint.Refill{Fresh: fresh, Needed: needed, UIDs: uids, GIDs: gids}
}

// refill fills the pod's shared memory, as far as there is something of it in a checkpoint. A
// stop of the pod ends it.
func (p *pod) refill(ctx context.Context, u *checkpoint.Unpacked, r checkpoint.Refill) error {
	archive, err := u.OpenShared()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer archive.Close()
	root, err := p.openShared()
	if err != nil {
		return err
	}
	defer root.Close()

	ctx, done := p.interruptible(ctx, nil)
	defer done()
	enter(ctx, "restore /dev/shm", false)
	return timedOut(ctx, p.inPodsGroup(ctx, func(into func(pid int) error) error { return r.Apart(ctx, p.m.Refill, into, archive, root) }))
}

// inPodsGroup calls do with what moves a process into a cgroup of the pod's: that of its first
// process, or else one that there is for this alone. What the process leaves in memory counts
// as the pod's also when the group is gone.
func (p *pod) inPodsGroup(ctx context.Context, do func(into func(pid int) error) error) (err error) {
	path, err := p.cgroupPath()
	if err != nil {
		return err
	}
	if p.hasPause() {
		group, err := p.m.Cgroups.Open(path)
		if err != nil {
			return err
		}
		return do(group.Admit)
	}

	if err := p.update(func(r *Record) { r.Refilled = true }); err != nil {
		return err
	}
	group, err := p.m.Cgroups.Create(ctx, path, &specs.LinuxResources{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.m.removeCgroup(context.WithoutCancel(ctx), path)) }()
	return do(func(pid int) error {
		if err := group.Attach(ctx, pid); err != nil {
			return err
		}
		return group.Admit(pid)
	})
}
