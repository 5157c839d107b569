package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crisp/cri/spec"
	"crisp/cri/spec/selinux"
	"crisp/image"
	"crisp/runtime/cgroup"
	"crisp/runtime/durable"
)

// containerSteps are the effects of a container on the machine before its
// start.
var containerSteps = []step[*creation]{
	{name: "prepare root file system", do: (*creation).prepareRootfs, undo: (*creation).discardRootfs},
	{name: "make spec", do: (*creation).makeSpec, undo: (*creation).removeSpec},
	{name: "make cgroup", do: (*creation).makeCgroup, undo: (*creation).removeCgroup},
}

// creation is a container that is being created or undone; for the latter only
// the first two fields are set.
type creation struct {
	p  *pod
	id string
	// For the forward walk: the image, the spec once it is made, and its other
	// results.
	image image.Image
	spec  *specs.Spec
	found func(*Container)
	// from is the checkpoint that the container is created of, nil for none.
	from *origin
}

func (k *creation) record() *Container { return k.p.record().Container(k.id) }

// dir is the container's directory below that of its pod, which exists if it
// has volumes.
func (k *creation) dir() string { return k.p.containerDir(k.id) }

// specSuffix follows a container's id in the name of the file with its spec.
const specSuffix = ".json"

// CreateContainer creates a container in a ready sandbox without running
// anything, and returns its id. A call with the metadata of a container that
// exists, or is being created, returns the id of that one.
func (m *Manager) CreateContainer(ctx context.Context, sandboxID string, cfg *runtimeapi.ContainerConfig) (string, error) {
	p, err := m.pod(sandboxID)
	if err != nil {
		return "", err
	}

	r := p.record()
	if err := spec.ValidateContainer(cfg, r.Config.Msg); err != nil {
		return "", err
	}

	op := p.operationOn("create", "")
	op.Container = cfg.GetMetadata().GetName()
	key := fmt.Sprintf("container %s (attempt %d) in sandbox %s", cfg.GetMetadata().GetName(), cfg.GetMetadata().GetAttempt(), r.ID)
	return m.join(ctx, key, op, func(ctx context.Context) (string, error) {
		release, err := p.lock(ctx)
		if err != nil {
			return "", err
		}
		defer release()

		id, err := p.create(ctx, cfg, nil)
		if err != nil {
			return "", fmt.Errorf("create container %s: %w", cfg.GetMetadata().GetName(), err)
		}
		return id, nil
	})
}

// create is called with the operation lock held. from is the container's part of a pod's
// checkpoint, nil if its image says of what it is created.
func (p *pod) create(ctx context.Context, cfg *runtimeapi.ContainerConfig, from *origin) (id string, err error) {
	r := p.record()
	if !r.Ready() {
		return "", fmt.Errorf("sandbox %s is not ready: %w", r.ID, ErrState)
	}
	if r.Moving != nil {
		return "", fmt.Errorf("sandbox %s: %w", r.ID, r.moved())
	}

	for _, c := range r.Containers {
		old := c.Config.Msg
		switch {
		case !proto.Equal(old.GetMetadata(), cfg.GetMetadata()):
		case c.Phase != phaseReady: // left by an earlier call that could not undo it
			if err := p.undoContainer(ctx, c); err != nil {
				return "", fmt.Errorf("undo an earlier attempt: %w", err)
			}
		case !proto.Equal(old, cfg):
			return "", fmt.Errorf("container %s has the same name but another configuration: %w", c.ID, ErrExists)
		default:
			return c.ID, nil
		}
	}

	if from == nil {
		if from, err = p.originOf(ctx, cfg); err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, from.drop(ctx)) }()
	}
	k, c, err := p.newContainer(cfg, from)
	if err != nil {
		return "", err
	}

	if err := walk(ctx, containerSteps, k, k.recorder(c)); err != nil {
		if leftOver(err) {
			warn(p.updateContainer(c.ID, func(c *Container) { c.Left, c.Message = true, err.Error() }), "record what is left of a container", "container", c.ID)
			p.m.index(c.ID, p)
			return "", err
		}
		return "", errors.Join(err, p.update(func(r *Record) { r.drop(c.ID) }))
	}

	p.m.index(c.ID, p)
	p.m.events.container(p.record(), c.ID, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	p.tellContainer(ctx, ContainerCreated, c.ID)
	return c.ID, nil
}

// recorder records the phases of a new container. The first call adds it to the
// pod's record, later ones add the results of the steps.
func (k *creation) recorder(c *Container) recorder {
	return func(phase string, _ bool) error {
		return k.p.update(func(r *Record) {
			known := r.edit(c.ID, func(c *Container) {
				c.Phase = phase
				if k.found != nil {
					k.found(c)
				}
			})
			if !known {
				r.Containers = append(r.Containers, c)
			}
		})
	}
}

// newContainer does all checks that need no change to the machine.
func (p *pod) newContainer(cfg *runtimeapi.ContainerConfig, from *origin) (*creation, *Container, error) {
	// What is created of a checkpoint has the image of the container that was saved.
	wanted, saved := cfg.GetImage().GetImage(), from != nil && from.config == nil
	if saved {
		wanted = from.unpacked.Config.RootfsImageRef
	}
	img, err := p.m.Images.Get(wanted)
	if err != nil {
		return nil, nil, err
	}

	cfg = proto.Clone(cfg).(*runtimeapi.ContainerConfig)
	named := cfg
	if saved {
		named = &runtimeapi.ContainerConfig{Image: &runtimeapi.ImageSpec{Image: img.ID}}
	}
	id := newID()
	cgroupPath, err := p.m.Cgroups.Path(p.record().Config.Msg.GetLinux().GetCgroupParent(), id)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}

	c := &Container{
		ID: id, Config: message(cfg), ImageID: img.ID, ImageRef: imageRef(named, img), ImageDigest: imageDigest(named, img), Phase: containerSteps[0].name,
		CreatedAt: time.Now().UnixNano(), CgroupPath: cgroupPath,
		LogPath: spec.LogPath(p.record().Config.Msg, cfg),
	}

	if res := cfg.GetLinux().GetResources(); res != nil {
		m := message(res)
		c.Resources = &m
	}
	return &creation{p: p, id: id, image: img, from: from}, c, nil
}

// imageRef is the name of a container's image in its status.
func imageRef(cfg *runtimeapi.ContainerConfig, img image.Image) string {
	if ref := cfg.GetImage().GetUserSpecifiedImage(); ref != "" {
		return ref
	}
	ref := cfg.GetImage().GetImage()
	// A tag is more useful to users than an id.
	if byID := ref == "" || ref == img.ID || strings.HasPrefix(strings.TrimPrefix(img.ID, "sha256:"), ref); byID {
		ref = img.ID
		if len(img.RepoTags) > 0 {
			ref = img.RepoTags[0]
		}
	}
	return ref
}

// imageDigest is the image's digest reference in the repository that the
// container uses, or in the image's first one; "" for an image without any.
func imageDigest(cfg *runtimeapi.ContainerConfig, img image.Image) string {
	for _, ref := range []string{cfg.GetImage().GetUserSpecifiedImage(), cfg.GetImage().GetImage(), imageRef(cfg, img)} {
		name, err := image.Repository(ref)
		if err != nil {
			continue
		}

		for _, digested := range img.RepoDigests {
			if strings.HasPrefix(digested, name+"@") {
				return digested
			}
		}
	}

	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return ""
}

func (m *Manager) index(containerID string, p *pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.containers[containerID] = p
}

func (m *Manager) unindex(containerID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.containers, containerID)
}

func (k *creation) prepareRootfs(ctx context.Context) error {
	uids, gids := spec.IDMaps(k.p.record().Config.Msg)
	return k.p.m.Images.Prepare(k.id, k.image.ID, uids, gids)
}

func (k *creation) discardRootfs(ctx context.Context) error {
	err := k.p.takeProcess(k.id).close()
	return errors.Join(err, k.p.m.Images.Discard(k.id))
}

// makeSpec translates the configuration. It reads the image's user files, so
// the root file system is mounted now, and kept until the start.
func (k *creation) makeSpec(ctx context.Context) error {
	p := k.p
	labels, err := p.containerLabels(k.record().Config.Msg)
	if err != nil {
		return err
	}

	root, err := p.m.Images.Mount(ctx, k.id, image.View{UserNS: p.namespace("user"), Label: labels.Mount})
	if err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}

	pr := newProcess()
	pr.rootfs = root
	p.setProcess(k.id, pr)
	out, data, user, err := k.translate(ctx, root, labels)
	if err != nil {
		return err
	}

	adjusted, data, err := k.askCreate(ctx, out, data)
	if err != nil {
		return err
	}

	if err := p.m.checkClass(out.Spec.Linux.IntelRdt, adjusted.By); err != nil {
		return err
	}
	for _, w := range out.Warnings {
		klog.InfoS("Unsupported container settings ignored", "container", k.id, "missing", w)
	}
	for _, w := range out.HookWarnings {
		klog.InfoS("Container has an unsafe hook", "container", k.id, "hook", w)
	}
	for _, v := range out.Volumes {
		if err := makeVolume(ctx, root, v); err != nil {
			return fmt.Errorf("create volume %s: %w", v.Path, err)
		}
		out.Relabel = append(out.Relabel, v.Source)
	}

	for _, path := range out.Relabel {
		if err := selinux.LabelTree(ctx, path, labels.Mount); err != nil {
			return labelError(err)
		}
	}

	if err := p.shareFiles(labels); err != nil {
		return err
	}
	volumes, err := k.imageVolumes(ctx, out.Images, labels.Mount)
	if err != nil {
		return err
	}

	if err := p.borrowDevices(out.Spec.Linux.NetDevices); err != nil {
		return err
	}

	k.spec = out.Spec
	if err := k.takeCheckpoint(ctx); err != nil {
		return err
	}
	if err := durable.CreateFile(k.p.specPath(k.id), data, 0o600); err != nil {
		return err
	}

	p.m.specs.put(k.id, out.Spec, len(data))
	k.found = func(c *Container) {
		c.User = UserIDs{UID: user.UID, GID: user.GID, Groups: user.Groups}
		c.StopSignal, c.PIDTarget, c.ImageVolumes = int32(out.StopSignal), out.PIDTarget, volumes
		c.HookSources, c.IntelRDT = out.HookSources, out.Spec.Linux.IntelRdt
		if k.from != nil {
			c.Checkpoint, c.CheckpointTrusted = true, k.from.trusted
		}
		adjusted.note(c)
	}
	return p.applyUpdates(ctx, adjusted.Updates)
}

// translate returns the runtime-spec from all of its inputs, and its encoded
// form.
func (k *creation) translate(ctx context.Context, root *os.File, labels spec.Labels) (*spec.Result, []byte, spec.ResolvedUser, error) {
	cfg, img := k.record().Config.Msg, k.image.Config.Config
	release, err := k.p.m.Images.Reserve(ctx, spec.Cost(cfg, img))
	if err != nil {
		return nil, nil, spec.ResolvedUser{}, err
	}
	defer release()

	user, err := spec.ResolveUser(root, cfg, img.User)
	if err != nil {
		return nil, nil, user, err
	}

	out, err := k.container(labels, user)
	if err != nil {
		return nil, nil, user, err
	}
	if len(out.CDI) > 0 {
		if err := k.check(out); err != nil {
			return nil, nil, user, fmt.Errorf("CDI devices %q: %w", out.CDI, err)
		}
	}
	data, err := spec.Encode(out.Spec)
	return out, data, user, err
}

func (k *creation) container(labels spec.Labels, user spec.ResolvedUser) (*spec.Result, error) {
	m, sandbox, cfg := k.p.m, k.p.record().Config.Msg, k.record().Config.Msg
	node, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read the node's host name: %w", err)
	}
	choices := m.choices.Load()
	return spec.Container(spec.Input{
		Sandbox: sandbox, Config: cfg, Image: k.image.Config.Config, User: user,
		Hostname: spec.Hostname(sandbox, node), CgroupsPath: k.record().CgroupPath,
		Files: spec.Files{
			Hosts: k.p.sharedFile(spec.HostsFile), Hostname: k.p.sharedFile(spec.HostnameFile), ResolvConf: k.p.sharedFile(spec.ResolvConfFile),
		},
		VolumeDir: filepath.Join(k.dir(), "volumes"), Labels: labels,
		Host: m.Host, Node: m.Node, Seccomp: choices.Seccomp, Defaults: choices.Defaults, CDI: m.CDI, Hooks: choices.Hooks,
		ID: k.id, SandboxID: k.p.record().ID,
	})
}

// imageVolumes records the image that each image mount was resolved to, and
// pins it: the container gets its content even if the reference moves.
func (k *creation) imageVolumes(ctx context.Context, mounts []spec.ImageMount, label string) ([]ImageVolume, error) {
	var out []ImageVolume
	for _, im := range mounts {
		img, err := k.p.m.Images.Get(im.Image.GetImage())
		if err != nil {
			return nil, fmt.Errorf("%w: image volume at %s: %w", ErrImageVolume, im.Path, err)
		}

		if err := k.p.m.Images.Hold(k.id, img.ID); err != nil {
			return nil, fmt.Errorf("%w: keep the image for %s: %w", ErrImageVolume, im.Path, err)
		}

		// Mount it already now, since kubelet expects this error here.
		f, err := k.p.m.Images.MountImage(ctx, img.ID, im.SubPath, image.View{UserNS: k.p.namespace("user"), Label: label})
		if err != nil {
			return nil, fmt.Errorf("%w: at %s: %w", ErrImageVolume, im.Path, err)
		}
		f.Close()
		out = append(out, ImageVolume{Path: im.Path, ImageID: img.ID, SubPath: im.SubPath})
	}

	return out, nil
}

func (k *creation) removeSpec(ctx context.Context) error {
	if err := k.endHooks(ctx); err != nil {
		return err
	}
	k.p.tellRemoved(ctx, k.id)
	k.p.m.specs.drop(k.id)
	err := os.Remove(k.p.specPath(k.id))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(k.p.takeProcess(k.id).close(), err, removeTree(ctx, k.dir()))
}

func (k *creation) makeCgroup(ctx context.Context) error {
	group, err := k.p.m.Cgroups.Create(ctx, k.record().CgroupPath, k.spec.Linux.Resources)
	if err != nil {
		return blamePlugins(k.record(), err)
	}
	k.p.setGroup(k.p.process(k.id), group)
	return k.p.m.makeClass(k.record())
}

func (k *creation) removeCgroup(ctx context.Context) error {
	c := k.record()
	if err := k.p.m.removeCgroup(ctx, c.CgroupPath); err != nil {
		return err
	}
	return k.p.m.removeClass(c)
}

// removeCgroup kills and removes a cgroup; its processes may have no record if
// the keeper and the daemon died together. One that only has processes that have
// ended and that nobody reaps is left for later: nothing else needs it any more.
func (m *Manager) removeCgroup(ctx context.Context, path string) error {
	group, err := m.Cgroups.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.killGroup(ctx, group); err != nil {
		return err
	}
	err = group.Remove(ctx)
	if !errors.Is(err, cgroup.ErrDefunct) {
		return err
	}
	klog.InfoS("Left a cgroup, to be removed when its processes, which have ended, are reaped", "cgroup", path)
	return m.left.add(path)
}

// killGroup kills the processes of a cgroup, but does not wait forever for
// those that cannot be killed.
func (m *Manager) killGroup(ctx context.Context, group *cgroup.Group) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	err := group.Kill(ctx)
	if errors.Is(err, cgroup.ErrBusy) {
		return fmt.Errorf("%w: %w", ErrUnkillable, err)
	}
	return err
}

// containerDir is the directory of the files that a container's creation
// writes.
func (p *pod) containerDir(id string) string {
	return filepath.Join(p.m.store.podDir(p.record().ID), id)
}

func (p *pod) specPath(id string) string { return p.containerDir(id) + specSuffix }

// loadSpec returns the spec from makeSpec. It must not be changed.
func (p *pod) loadSpec(id string) (*specs.Spec, error) {
	if s := p.m.specs.get(id); s != nil {
		return s, nil
	}

	data, err := os.ReadFile(p.specPath(id))
	if err != nil {
		return nil, fmt.Errorf("read spec of container %s: %w", id, err)
	}
	s, err := spec.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}

	p.m.specs.put(id, s, len(data))
	return s, nil
}
