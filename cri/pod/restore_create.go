package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
	"crisp/image"
	"crisp/runtime/checkpoint"
	"crisp/runtime/failpoint"
	"crisp/runtime/plan"
	"crisp/runtime/rootpath"
)

// maxCheckpoint bounds a checkpoint and what is unpacked of it, in bytes. The disk
// bounds it, too.
const maxCheckpoint = 256 << 30

// RestoreRequest asks for a pod from a checkpoint in the directory Path.
type RestoreRequest struct {
	Path       string
	Config     *runtimeapi.PodSandboxConfig
	Handler    string
	Options    map[string]string
	Containers []*runtimeapi.ContainerConfig
	// Start has the containers run when the pod is there: it is all of them or no pod.
	Start bool

	arrival *arrival
	// merge is that of [CloneOptions].
	merge bool
}

// arrival is what a pod that moves here comes with.
type arrival struct {
	token     string
	addresses []string
	origins   map[string]*origin
	// prepared is called when the containers are created. Then they are started, unless it
	// fails.
	prepared func(context.Context) error
}

// RestorePod creates a pod, and its containers without starting them, of a checkpoint.
// It returns the sandbox's id and those of the containers, by name. No option is known
// so far. After an error nothing of the pod is left.
func (m *Manager) RestorePod(ctx context.Context, r RestoreRequest) (string, map[string]string, error) {
	name := sandboxName(r.Config.GetMetadata())
	if err := m.checkRestore(ctx, r); err != nil {
		return "", nil, fmt.Errorf("restore pod %s: %w", name, err)
	}

	id, err := m.join(ctx, sandboxKey(r.Config.GetMetadata()), Operation{What: "restore pod", Pod: name}, func(ctx context.Context) (string, error) {
		return m.restorePod(ctx, r)
	})
	if err != nil {
		return "", nil, fmt.Errorf("restore pod %s: %w", name, err)
	}
	p, err := m.pod(id)
	if err != nil {
		return "", nil, err
	}

	made := map[string]string{}
	for _, c := range p.record().Containers {
		made[c.Config.Msg.GetMetadata().GetName()] = c.ID
	}
	return id, made, nil
}

// checkRestore checks what needs no look at the checkpoint.
func (m *Manager) checkRestore(ctx context.Context, r RestoreRequest) error {
	if err := spec.ValidateSandbox(r.Config); err != nil {
		return err
	}
	if err := checkPodCall(ctx, r.Options); err != nil {
		return err
	}
	if !m.HasHandler(r.Handler) {
		return fmt.Errorf("%w: no runtime handler %q (there are %q)", ErrInvalid, r.Handler, m.Handlers())
	}
	if err := checkAbsolute("checkpoint", r.Path); err != nil {
		return err
	}

	if len(r.Containers) == 0 {
		return fmt.Errorf("%w: no container is named", ErrInvalid)
	}
	seen := map[string]bool{}
	for _, c := range r.Containers {
		if err := spec.ValidateContainer(c, r.Config); err != nil {
			return err
		}
		if n := c.GetMetadata().GetName(); seen[n] {
			return fmt.Errorf("%w: container %.100q is named twice", ErrInvalid, n)
		}
		seen[c.GetMetadata().GetName()] = true
	}
	return nil
}

func (m *Manager) restorePod(ctx context.Context, r RestoreRequest) (id string, err error) {
	origins, err := m.originsOf(ctx, r)
	defer func() { err = errors.Join(err, dropAll(ctx, origins)) }()
	if err != nil {
		return "", err
	}
	if id, err = m.runSandbox(ctx, r.Config, r.Handler, &r); err != nil {
		return "", err
	}

	p, err := m.pod(id)
	if err != nil {
		return "", err
	}
	if r.Start && !p.record().Restoring {
		return "", fmt.Errorf("sandbox %s is that pod: %w", id, ErrExists)
	}
	if err := p.restoreContainers(ctx, r, origins); err != nil {
		return "", errors.Join(err, p.dropRestored(ctx, r.Start))
	}
	return id, nil
}

// originsOf opens the checkpoint that a request names, by the names of the containers:
// a snapshot of this node, or a directory with archives.
func (m *Manager) originsOf(ctx context.Context, r RestoreRequest) (map[string]*origin, error) {
	if r.arrival != nil {
		return r.arrival.origins, nil
	}
	if name, ok := m.snapshotAt(r.Path); ok {
		return m.cloneSnapshot(ctx, name, r)
	}
	dir, err := os.OpenFile(r.Path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: open checkpoint: %w", ErrInvalid, err)
	}
	defer dir.Close()

	from, _, err := m.restoreFrom()
	if err != nil {
		return nil, err
	}
	saved, err := checkpoint.OpenPod(dir, from)
	if err != nil {
		return nil, err
	}
	dump, err := decodeDump(saved.Dump)
	if err != nil {
		return nil, err
	}
	if err := dump.check(r); err != nil {
		return nil, err
	}
	return m.origins(ctx, saved, dump)
}

// origins unpacks the archives of a pod's checkpoint, by the names of the containers.
func (m *Manager) origins(ctx context.Context, saved *checkpoint.Pod, dump *PodDump) (map[string]*origin, error) {
	made := map[string]*origin{}
	for _, c := range dump.Containers {
		f, digest, err := saved.Archive(c.Archive)
		if err != nil {
			return made, fmt.Errorf("container %s: %w", c.Name, err)
		}
		made[c.Name], err = m.unpackContainer(ctx, f, digest, c)
		f.Close()
		if err != nil {
			return made, fmt.Errorf("container %s: %w", c.Name, err)
		}
	}
	return made, nil
}

// unpackContainer unpacks the archive of a container of a pod's checkpoint.
func (m *Manager) unpackContainer(ctx context.Context, archive io.Reader, digest string, c ContainerDump) (*origin, error) {
	o, err := m.unpack(ctx, archive, digest)
	if err != nil {
		return nil, err
	}
	o.config = c.Config.Msg
	if name := o.unpacked.Config.Name; name != c.Name {
		return nil, errors.Join(fmt.Errorf("%w: its archive is of %.100q", checkpoint.ErrInvalid, name), o.drop(ctx))
	}
	return o, nil
}

func dropAll(ctx context.Context, origins map[string]*origin) (err error) {
	for _, o := range origins {
		err = errors.Join(err, o.drop(ctx))
	}
	return err
}

func (p *pod) restoreContainers(ctx context.Context, r RestoreRequest, origins map[string]*origin) error {
	release, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := p.refillFresh(ctx, r, origins); err != nil {
		return err
	}
	for _, c := range r.Containers {
		name := c.GetMetadata().GetName()
		if _, err := p.create(ctx, c, origins[name]); err != nil {
			return fmt.Errorf("create container %s: %w", name, err)
		}
	}

	if r.arrival != nil {
		if err := p.awaitGo(ctx, r.arrival); err != nil {
			return err
		}
	}
	if r.Start {
		return p.startRestored(ctx)
	}
	return p.commitRestored()
}

// awaitGo waits until a pod that moves here may be started. A stop of it ends that.
func (p *pod) awaitGo(ctx context.Context, a *arrival) error {
	ctx, done := p.interruptible(ctx, nil)
	defer done()
	return timedOut(ctx, a.prepared(ctx))
}

// commitRestored records that a pod has all that it is restored with.
func (p *pod) commitRestored() error { return p.update(func(r *Record) { r.Restoring = false }) }

// startRestored starts all containers of a pod. It commits when the last one is there and
// has not run an instruction.
func (p *pod) startRestored(ctx context.Context) error {
	err := p.startInOrder(ctx)
	if err == nil {
		err = p.letIn()
	}
	if err != nil {
		// So that it is removed, whatever has been recorded.
		return errors.Join(err, p.update(func(r *Record) { r.Restoring = true }))
	}
	return nil
}

func (p *pod) startInOrder(ctx context.Context) error {
	list, committed := p.record().Containers, false
	for i, c := range list {
		var ready func() error
		if i == len(list)-1 {
			ready = func() error {
				committed = true
				return failpoint.Between("commit a restored pod", p.commitRestored)
			}
		}
		if err := p.start(ctx, c.ID, ready); err != nil {
			return err
		}
	}
	if !committed {
		return fmt.Errorf("%w: the last container was started without one", checkpoint.ErrInvalid)
	}
	return nil
}

// dropRestored removes a pod that lacks a container. One that was there before the call
// stays, of which own says that there was none.
func (p *pod) dropRestored(ctx context.Context, own bool) (err error) {
	if !own && !p.record().Restoring {
		return nil
	}
	// Its processes first, which need no record: another node may be about to let its own go on.
	for _, c := range p.record().Containers {
		if group, gerr := p.groupOf(c); gerr == nil {
			err = errors.Join(err, p.m.killGroup(context.WithoutCancel(ctx), group))
		}
	}
	return errors.Join(err, p.m.RemoveSandbox(context.WithoutCancel(ctx), p.record().ID))
}

func decodeDump(text []byte) (*PodDump, error) {
	var dump PodDump
	if err := json.Unmarshal(text, &dump); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", checkpoint.ErrInvalid, checkpoint.PodFile, err)
	}
	if dump.Version != podDumpVersion {
		return nil, fmt.Errorf("%w: %s has version %d, and this is %d", checkpoint.ErrInvalid, checkpoint.PodFile, dump.Version, podDumpVersion)
	}
	return &dump, nil
}

// check compares a checkpoint with what is asked for: the same containers with the same
// programs, for the same handler.
func (d *PodDump) check(r RestoreRequest) error {
	if d.Handler != r.Handler {
		return fmt.Errorf("%w: the checkpoint is of runtime handler %.100q, not %q", ErrInvalid, d.Handler, r.Handler)
	}
	var saved, asked []string
	for _, c := range d.Containers {
		saved = append(saved, c.Name)
	}
	for _, c := range r.Containers {
		asked = append(asked, c.GetMetadata().GetName())
	}
	slices.Sort(saved)
	slices.Sort(asked)
	if !slices.Equal(saved, asked) {
		return fmt.Errorf("%w: the checkpoint has the containers %.500q, and asked for are %.500q", ErrInvalid, saved, asked)
	}
	return nil
}

// origin is the checkpoint of which a container is created.
type origin struct {
	unpacked *checkpoint.Unpacked
	// dir is where it is, "" once the container has it.
	dir string
	// config is the configuration that the container had, nil if that is unknown.
	config *runtimeapi.ContainerConfig
	// trusted: it is signed by one of those whose checkpoints are restored.
	trusted bool
}

// restoreFrom says whose checkpoints are restored, and who this node is.
func (m *Manager) restoreFrom() (from checkpoint.Policy, own checkpoint.PublicKey, err error) {
	key, err := checkpoint.OpenKey(m.Root)
	if err != nil {
		return from, own, err
	}
	from, err = checkpoint.ParsePolicy(m.choices.Load().RestoreFrom, key.Public())
	return from, key.Public(), err
}

// unpack unpacks an archive where the next daemon would find and remove it.
func (m *Manager) unpack(ctx context.Context, archive io.Reader, digest string) (*origin, error) {
	parent, name := filepath.Join(m.Root, stagesDir), newID()
	from, _, err := m.restoreFrom()
	if err != nil {
		return nil, err
	}
	u, err := checkpoint.Unpack(ctx, archive, parent, name, checkpoint.Terms{Bytes: maxCheckpoint, From: from, Digest: digest})
	if err != nil {
		return nil, err
	}
	return &origin{unpacked: u, dir: filepath.Join(parent, name), trusted: from.Trusts(u.Signer)}, nil
}

// drop removes what no container has.
func (o *origin) drop(ctx context.Context) error {
	if o == nil || o.dir == "" {
		return nil
	}
	return o.unpacked.Remove(context.WithoutCancel(ctx))
}

// check compares a checkpoint with the container that is created of it.
func (o *origin) check(k *creation) error {
	if id := o.unpacked.Config.RootfsImageRef; id != k.image.ID {
		return fmt.Errorf("%w: the checkpoint is of image %.200q, and the container has %s", ErrInvalid, id, k.image.ID)
	}
	if o.config == nil {
		return nil
	}

	was, is := o.config, k.record().Config.Msg
	for what, same := range map[string]bool{
		"command":           slices.Equal(was.GetCommand(), is.GetCommand()),
		"arguments":         slices.Equal(was.GetArgs(), is.GetArgs()),
		"working directory": was.GetWorkingDir() == is.GetWorkingDir(),
		"environment":       slices.Equal(environment(was), environment(is)),
		"terminal":          was.GetTty() == is.GetTty(),
	} {
		if !same {
			return fmt.Errorf("%w: the %s differs from that of the checkpointed process", ErrInvalid, what)
		}
	}
	return nil
}

// environment has the variables of a configuration in order.
func environment(c *runtimeapi.ContainerConfig) (list []string) {
	for _, e := range c.GetEnvs() {
		list = append(list, e.GetKey()+"="+string(e.GetValue()))
	}
	slices.Sort(list)
	return list
}

// unpackedPath is where the checkpoint of a container is until it is started.
func (p *pod) unpackedPath(id string) string { return filepath.Join(p.containerDir(id), unpackedDir) }

// takeCheckpoint gives a container the files and the images of the checkpoint that it
// is created of, if any. It is a part of makeSpec, whose undo removes them: a step of its
// own would cost every container a record.
func (k *creation) takeCheckpoint(ctx context.Context) error {
	o := k.from
	if o == nil {
		return nil
	}
	if err := errors.Join(o.check(k), plan.Restorable(k.spec)); err != nil {
		return err
	}
	ctx, done := k.p.interruptible(ctx, nil)
	defer done()
	if err := o.unpacked.Apply(ctx, k.p.process(k.id).rootfs, outside(k.spec)); err != nil {
		return timedOut(ctx, err)
	}

	if err := os.MkdirAll(k.dir(), 0o700); err != nil {
		return fmt.Errorf("make directory for the checkpoint: %w", err)
	}
	if err := os.Rename(o.dir, k.p.unpackedPath(k.id)); err != nil {
		return fmt.Errorf("take the checkpoint: %w", err)
	}
	o.dir = ""
	return nil
}

// outside translates owners in a container to those on the node, which is what its
// writable layer has: the reverse of [inside].
func outside(s *specs.Spec) checkpoint.IDs {
	return checkpoint.MappedIDs(s.Linux.UIDMappings, s.Linux.GIDMappings)
}

// archiveOf is the path of the checkpoint that a container's image is, "" if it is none.
func archiveOf(c *runtimeapi.ContainerConfig) string {
	if path := c.GetImage().GetImage(); strings.HasPrefix(path, "/") {
		return path
	}
	return ""
}

// originOf unpacks the checkpoint that a container's image is: an archive, or an image
// with that annotation. It is nil for an ordinary image, or one that is not there. It
// takes as long as who has made the image likes, so a stop of the pod ends it.
func (p *pod) originOf(ctx context.Context, c *runtimeapi.ContainerConfig) (o *origin, err error) {
	path := archiveOf(c)
	img, err := p.m.Images.Get(c.GetImage().GetImage()) // of a path there is none
	if path == "" && (err != nil || img.Checkpoint == "") {
		return nil, nil // the creation says what is wrong
	}

	ctx, done := p.interruptible(ctx, nil)
	defer done()
	if path != "" {
		o, err = p.m.unpackFile(ctx, path)
	} else {
		o, err = p.m.unpackImage(ctx, img)
	}
	return o, timedOut(ctx, err)
}

// unpackFile unpacks an archive of the node's.
func (m *Manager) unpackFile(ctx context.Context, path string) (*origin, error) {
	f, err := rootpath.OpenNodeFile(path, maxCheckpoint)
	if err != nil {
		return nil, fmt.Errorf("%w: open checkpoint: %w", ErrInvalid, err)
	}
	defer f.Close()
	return m.unpack(ctx, f, "")
}

// unpackImage unpacks the checkpoint that an image is.
func (m *Manager) unpackImage(ctx context.Context, img image.Image) (*origin, error) {
	user := newID() // of the image's layers, until they are read
	if err := m.Images.Hold(user, img.ID); err != nil {
		return nil, err
	}
	defer func() { warn(m.Images.Discard(user), "release the image of a checkpoint", "image", img.ID) }()
	dir, err := m.Images.MountImage(ctx, img.ID, "", image.View{})
	if err != nil {
		return nil, err
	}
	defer dir.Close()

	r, w := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		w.CloseWithError(checkpoint.Pack(ctx, dir, w))
	}()
	o, err := m.unpack(ctx, r, "")
	r.Close()
	<-packed
	if err != nil {
		return nil, fmt.Errorf("image %s, a checkpoint of container %.100q: %w", img.ID, img.Checkpoint, err)
	}
	return o, nil
}
