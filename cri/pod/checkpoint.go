package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
	"crisp/network/netns"
	"crisp/runtime/cgroup"
	"crisp/runtime/checkpoint"
	"crisp/runtime/criu"
	"crisp/runtime/failpoint"
	"crisp/runtime/keeper/client"
)

const (
	// checkpointTime is how long a container may be frozen for a checkpoint, unless
	// the caller says.
	checkpointTime = time.Minute
	// stagesDir is the directory below the root in which archives are put together.
	stagesDir = "checkpoints"
)

// PodDump is the file pod.dump of a pod's checkpoint.
type PodDump struct {
	// Version is the format of the checkpoint.
	Version int
	// Config is the configuration of the sandbox, and Containers are the containers
	// in it, as their names and archives.
	Config     Message[*runtimeapi.PodSandboxConfig]
	Handler    string `json:",omitempty"`
	Containers []ContainerDump
}

// ContainerDump is a container in a [PodDump].
type ContainerDump struct {
	Name, Archive string
	Config        Message[*runtimeapi.ContainerConfig]
}

// podDumpVersion is the format that this build writes.
const podDumpVersion = 1

// dump is a [PodDump] of the pod, with the given containers, each with an archive of the
// name that archive gives it.
func (r *Record) dump(list []*Container, archive func(i int) string) PodDump {
	d := PodDump{Version: podDumpVersion, Config: r.Config, Handler: r.Handler}
	for i, c := range list {
		d.Containers = append(d.Containers, ContainerDump{c.Config.Msg.GetMetadata().GetName(), archive(i), c.Config})
	}
	return d
}

// idsOf are the IDs of containers.
func idsOf(list []*Container) (ids []string) {
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids
}

// CheckpointContainer writes the state of a running container to the archive
// location, and lets it go on. A limit of 0 is the default.
func (m *Manager) CheckpointContainer(ctx context.Context, id, location string, limit time.Duration) (err error) {
	p, id, err := m.container(id)
	if err != nil {
		return err
	}
	if err := checkLocation(location); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", id, err)
	}
	if limit < 0 {
		return fmt.Errorf("checkpoint container %s: %w: time-out %v", id, ErrInvalid, limit)
	}
	if limit == 0 {
		limit = checkpointTime
	}

	ctx, end := m.activity.begin(ctx, p.operationOn("checkpoint", id))
	defer func() { end(err) }()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w after %v", ErrTimeout, limit))
	defer cancel()
	key, err := checkpoint.OpenKey(m.Root)
	if err == nil {
		_, err = p.checkpoint(ctx, key, []string{id}, func(string) string { return location })
	}
	if err != nil {
		return fmt.Errorf("checkpoint container %s: %w", id, err)
	}
	return nil
}

// checkLocation checks where an archive is to be written.
func checkLocation(location string) error {
	if err := checkAbsolute("location", location); err != nil {
		return err
	}
	info, err := os.Stat(filepath.Dir(location))
	if err == nil && !info.IsDir() {
		err = unix.ENOTDIR
	}
	if err != nil {
		return fmt.Errorf("%w: directory of the location: %w", ErrInvalid, err)
	}
	if info, err := os.Lstat(location); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%w: the location %.200q exists and is no regular file", ErrInvalid, location)
	}
	return nil
}

// checkAbsolute checks a path of a request.
func checkAbsolute(what, path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("%w: the %s %.200q is no absolute path", ErrInvalid, what, path)
	}
	return nil
}

// checkPodCall checks what the calls about a pod's checkpoint have in common: a deadline,
// and options, of which none is known.
func checkPodCall(ctx context.Context, options map[string]string) error {
	if _, ok := ctx.Deadline(); !ok {
		return fmt.Errorf("%w: the call has no deadline", ErrInvalid)
	}
	for name := range options {
		return fmt.Errorf("%w: unknown option %.100q", ErrInvalid, name)
	}
	return nil
}

// CheckpointPod writes the state of the given running containers of a pod, at one
// moment, into the empty directory dir, and lets them go on. ctx must have a
// deadline. No option is known so far.
func (m *Manager) CheckpointPod(ctx context.Context, id, dir string, containers []string, options map[string]string) (err error) {
	p, err := m.pod(id)
	if err != nil {
		return err
	}
	if err := checkPodRequest(ctx, dir, containers, options); err != nil {
		return fmt.Errorf("checkpoint sandbox %s: %w", p.record().ID, err)
	}

	ctx, end := m.activity.begin(ctx, p.operation("checkpoint"))
	defer func() { end(err) }()
	r := p.record()
	if !r.Ready() {
		return fmt.Errorf("checkpoint sandbox %s: it is not ready: %w", r.ID, ErrState)
	}

	made := []string{checkpoint.PodFile, checkpoint.PodManifest}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("checkpoint sandbox %s: %w", r.ID, err), empty(dir, made))
		}
	}()
	archives := map[string]string{}
	var list []*Container
	for i, id := range containers {
		c := r.Container(id)
		if c == nil {
			return fmt.Errorf("%w: it has no container %s", ErrInvalid, id)
		}
		archives[id] = fmt.Sprintf("container-%d.tar", i)
		made, list = append(made, archives[id]), append(list, c)
	}
	dump := r.dump(list, func(i int) string { return archives[containers[i]] })

	key, err := checkpoint.OpenKey(m.Root)
	if err != nil {
		return err
	}
	digests, err := p.checkpoint(ctx, key, containers, func(id string) string { return filepath.Join(dir, archives[id]) })
	if err != nil {
		return err
	}
	text, err := json.Marshal(dump)
	if err != nil {
		return fmt.Errorf("encode %s: %w", checkpoint.PodFile, err)
	}
	signed := map[string]string{}
	for id, name := range archives {
		signed[name] = digests[id]
	}
	return key.SignPod(dir, text, signed)
}

func checkPodRequest(ctx context.Context, dir string, containers []string, options map[string]string) error {
	if err := checkPodCall(ctx, options); err != nil {
		return err
	}
	for i, id := range containers {
		if slices.Contains(containers[:i], id) {
			return fmt.Errorf("%w: container %.100q is named twice", ErrInvalid, id)
		}
	}
	if len(containers) == 0 {
		return fmt.Errorf("%w: no container is named", ErrInvalid)
	}

	if err := checkAbsolute("output", dir); err != nil {
		return err
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("%w: open output directory: %w", ErrInvalid, err)
	}
	defer f.Close()
	if names, err := f.Readdirnames(1); len(names) > 0 || !errors.Is(err, io.EOF) {
		return errors.Join(fmt.Errorf("%w: the output directory %.200q is not empty", ErrInvalid, dir), err)
	}
	return nil
}

// empty removes what a failed checkpoint has left of its files.
func empty(dir string, files []string) (err error) {
	for _, name := range files {
		if e := os.Remove(filepath.Join(dir, name)); !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// frozen is a container that is being saved.
type frozen struct {
	c     *Container
	pr    *process
	spec  *specs.Spec
	group *cgroup.Group
	stage checkpoint.Stage
	// archive takes the memory while it is saved, unless it is nil.
	archive *checkpoint.Archive
	// held means that nothing reaches the pod's network meanwhile, nor leaves it.
	held bool
	// links are names that files of the pod's /dev/shm are to have when the container is restored.
	links []checkpoint.Name
	// peers is the reason if CRIU refuses a container because of its sockets, "" for none.
	peers string
}

// checkpoint freezes containers, saves each, and lets all go on. Then it writes
// and signs the archives, and returns their digests.
func (p *pod) checkpoint(ctx context.Context, key *checkpoint.Key, ids []string, location func(id string) string) (digests map[string]string, err error) {
	digests = map[string]string{}
	err = p.capture(ctx, ids, saving{
		begin: func(f *frozen) (err error) {
			f.archive, err = checkpoint.NewArchive(location(f.c.ID))
			return err
		},
		finish: func(ctx context.Context, f *frozen) (err error) {
			enter(ctx, "write the archive of container "+f.c.Config.Msg.GetMetadata().GetName(), false)
			digests[f.c.ID], err = f.stage.Write(ctx, f.archive, key)
			return err
		},
	})
	return digests, err
}

// saving is what is done about containers that are saved: to each before they are frozen,
// to all while they are frozen, and to each after they go on. Each may be nil.
type saving struct {
	begin  func(*frozen) error
	use    func(context.Context, []*frozen) error
	finish func(context.Context, *frozen) error
}

// capture freezes containers, saves each in a stage of its own, and lets them go on. The
// stages end with capture.
func (p *pod) capture(ctx context.Context, ids []string, do saving) error {
	program, err := p.m.CRIU.Find(ctx)
	if err != nil {
		return err
	}
	// Also while it waits: others would have to wait for it in turn.
	ctx, done := p.interruptible(ctx, ids)
	defer done()
	release, err := p.lock(ctx)
	if err != nil {
		return timedOut(ctx, err)
	}
	defer release()
	if ctx.Err() != nil { // what it waited for came first
		return timedOut(ctx, context.Cause(ctx))
	}

	var list []*frozen
	for _, id := range ids {
		f, err := p.saveable(id)
		if err != nil {
			return err
		}
		list = append(list, f)
	}

	for _, f := range list {
		f.stage, err = checkpoint.NewStage(filepath.Join(p.m.Root, stagesDir), f.c.ID+"-"+newID()[:16])
		defer func() {
			warn(f.stage.Remove(context.WithoutCancel(ctx)), "remove the directory of a checkpoint", "container", f.c.ID)
			if f.archive != nil {
				f.archive.Close() // it is complete, or given up
			}
		}()
		if err == nil && do.begin != nil {
			err = do.begin(f)
		}
		if err != nil {
			return err
		}
	}

	err = p.whileFrozen(ctx, list, func(f *frozen) error { return p.save(ctx, program, f) }, do.use)
	if err != nil || do.finish == nil {
		return err
	}
	for _, f := range list {
		if err := do.finish(ctx, f); err != nil {
			return timedOut(ctx, err)
		}
	}
	return nil
}

// saveable returns a container if its state is one that can be saved.
func (p *pod) saveable(id string) (*frozen, error) {
	c, pr := p.record().Container(id), p.process(id)
	if c == nil {
		return nil, fmt.Errorf("container %s: %w", id, ErrNotFound)
	}
	if pr == nil || c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("container %s: it is %s, not running: %w", id, c.StateName(), ErrState)
	}

	if p.record().Moving != nil {
		return nil, p.record().moved()
	}
	sandbox := p.record().Config.Msg
	if spec.NamespaceMode(sandbox, spec.PID) != runtimeapi.NamespaceMode_CONTAINER || p.sharesPID(id) {
		return nil, fmt.Errorf("container %s: it shares a PID namespace, which CRIU cannot save without its first process: %w", id, ErrState)
	}
	if n := p.m.table.CountOf(client.Exec, commandPrefix(id)); n > 0 {
		return nil, fmt.Errorf("container %s: commands (%d) run in it, whose streams are another's; wait for their end: %w", id, n, ErrState)
	}

	s, err := p.loadSpec(id)
	if err != nil {
		return nil, err
	}
	group, err := p.groupOf(c)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	var peers string
	pids, err := group.Pids()
	if err == nil {
		peers, err = p.checkSaveable(id, pids)
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	return &frozen{c: c, pr: pr, spec: s, group: group, peers: peers}, nil
}

// whileFrozen freezes containers before the first is saved and thaws them after
// the last, whatever happens. Their records say so meanwhile, for a daemon that
// finds them after a crash. With all saved it calls use, unless that is nil: then nothing
// that their peers send meanwhile is acknowledged here.
func (p *pod) whileFrozen(ctx context.Context, list []*frozen, save func(*frozen) error, use func(context.Context, []*frozen) error) (err error) {
	defer func() {
		for _, f := range list {
			err = errors.Join(err, p.thaw(context.WithoutCancel(ctx), f))
		}
	}()

	for _, f := range list {
		f.held = use != nil
		if err := p.updateContainer(f.c.ID, func(c *Container) { c.Frozen = true }); err != nil {
			return err
		}
		enter(ctx, "freeze container "+f.c.Config.Msg.GetMetadata().GetName(), false)
		if err := failpoint.Between("freeze", func() error { return f.group.Freeze(ctx) }); err != nil {
			return timedOut(ctx, err)
		}
	}

	if use != nil {
		if err := p.holdNetwork(); err != nil {
			return err
		}
	}
	for _, f := range list {
		if err := failpoint.Between("save", func() error { return save(f) }); err != nil {
			return timedOut(ctx, fmt.Errorf("container %s: %w", f.c.Config.Msg.GetMetadata().GetName(), err))
		}
	}
	if err := failpoint.Between("save shared memory", func() error { return p.saveShared(ctx, list) }); err != nil {
		return timedOut(ctx, err)
	}
	if use == nil {
		return nil
	}
	return timedOut(ctx, use(ctx, list))
}

func (p *pod) thaw(ctx context.Context, f *frozen) error {
	if p.record().Moving != nil {
		return nil // it may run elsewhere
	}
	if f.held {
		if err := p.releaseNetwork(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := f.group.Thaw(ctx); err != nil {
		return fmt.Errorf("container %s: %w", f.c.ID, err)
	}
	return ignoreNotFound(p.updateContainer(f.c.ID, func(c *Container) { c.Frozen = false }))
}

// save has CRIU dump a frozen container and adds its files.
func (p *pod) save(ctx context.Context, program criu.Program, f *frozen) error {
	pids, err := f.group.Pids()
	if err != nil {
		return err
	}
	first := f.pr.row.Pid()
	pids = append([]int{first}, slices.DeleteFunc(pids, func(pid int) bool { return pid == first })...)

	enter(ctx, "dump container "+f.c.Config.Msg.GetMetadata().GetName()+" with CRIU", false)
	externals, err := criu.Externals(pids)
	if err != nil {
		return err
	}
	if err := f.stage.WriteStreams(streamsOf(f.pr, externals)); err != nil {
		return err
	}
	content, err := p.content(ctx, f)
	if err != nil {
		return err
	}
	defer content.Diff.Upper.Close()
	defer content.Diff.Lower.Close()
	dump := criu.Dump{
		Pid: first, Images: f.stage.Images(), Freezer: f.group.Freezer(), Externals: externals,
		Saved: func() error { return p.noteLinks(ctx, f, externals, &content.Diff) },
	}
	if f.archive != nil {
		dump.Sink, dump.Processes = f.archive, len(pids)
	}

	if err := program.Dump(ctx, dump); err != nil {
		warn(p.unlockNetwork(first), "let a container's connections go on", "container", f.c.ID)
		if errors.Is(err, criu.ErrRefused) && f.peers != "" {
			err = fmt.Errorf("%w; %s", err, f.peers)
		}
		return err
	}
	content.Config.CheckpointedAt = time.Now().UTC()
	return f.stage.Fill(ctx, content)
}

// streamsOf are the standard streams of a process as CRIU calls them.
func streamsOf(pr *process, externals []string) (list checkpoint.Streams) {
	for _, e := range externals {
		if strings.HasPrefix(e, "file[") { // the node's null device
			list = checkpoint.Streams{e, e, e}
		}
	}
	log := pr.row.Log()
	if log == nil { // it could not be handed to a new keeper
		log = &client.LogConfig{}
	}
	for i, f := range []*os.File{pr.stdin, pipeOf(log.Stdout), pipeOf(log.Stderr)} {
		if info, err := stat(f); err == nil && info.Mode&unix.S_IFMT == unix.S_IFIFO {
			list[i] = fmt.Sprintf("pipe:[%d]", info.Ino)
		}
	}
	return list
}

func pipeOf(s *client.Stream) *os.File {
	if s == nil {
		return nil
	}
	return s.Pipe
}

// stat examines an open file, which may be nil or closed.
func stat(f *os.File) (st unix.Stat_t, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return st, err
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); cerr != nil {
		return st, cerr
	}
	return st, err
}

// unlockNetwork removes the packet filter table with which CRIU holds up the
// connections of a process, and which it leaves behind when it is killed.
func (p *pod) unlockNetwork(pid int) error {
	ns, err := p.record().openNetwork()
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	return netns.RemoveTable(ns, criu.Table(pid))
}

// content is what is saved of a container besides its processes.
func (p *pod) content(ctx context.Context, f *frozen) (_ checkpoint.Content, err error) {
	c, cfg, pod := f.c, f.c.Config.Msg, p.record().Config.Msg
	content := checkpoint.Content{
		Config: checkpoint.Config{
			ID: c.ID, Name: cfg.GetMetadata().GetName(), OCIRuntime: "crisp",
			RootfsImage: c.ImageRef, RootfsImageName: c.ImageRef, RootfsImageRef: c.ImageID,
			CreatedTime: time.Unix(0, c.CreatedAt).UTC(),
		},
		Status: checkpoint.Status{CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, Pid: uint32(f.pr.row.Pid())},
		Log:    c.LogPath,
		Spec:   described(f.spec, pod, cfg),
		Diff:   checkpoint.Diff{IDs: inside(f.spec)},
	}

	content.Diff.Upper, err = p.m.Images.Upper(c.ID)
	if err != nil {
		return content, err
	}
	content.Diff.Lower, err = p.m.Images.Lower(ctx, c.ID)
	if err != nil {
		content.Diff.Upper.Close()
		return content, err
	}
	return content, nil
}

// described is a copy of a spec that names the container and its pod, as
// programs that read checkpoints expect it.
func described(s *specs.Spec, pod *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) *specs.Spec {
	n := *s
	n.Annotations = map[string]string{}
	maps.Copy(n.Annotations, s.Annotations)
	for k, v := range map[string]string{
		"container-name": cfg.GetMetadata().GetName(), "container-type": "container", "image-name": cfg.GetImage().GetImage(),
		"sandbox-name": pod.GetMetadata().GetName(), "sandbox-namespace": pod.GetMetadata().GetNamespace(), "sandbox-uid": pod.GetMetadata().GetUid(),
	} {
		n.Annotations["io.kubernetes.cri."+k] = v
	}
	return &n
}

// inside translates owners on the node to those in a container.
func inside(s *specs.Spec) func(uid, gid uint32) (int, int) {
	translate := func(maps []specs.LinuxIDMapping, id uint32) int {
		for _, m := range maps {
			if id >= m.HostID && id-m.HostID < m.Size {
				return int(m.ContainerID + id - m.HostID)
			}
		}
		return int(id)
	}
	return func(uid, gid uint32) (int, int) {
		return translate(s.Linux.UIDMappings, uid), translate(s.Linux.GIDMappings, gid)
	}
}
