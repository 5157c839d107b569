package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/checkpoint"
	"crisp/runtime/durable"
	"crisp/runtime/host"
)

const (
	// snapshotsDir is the directory below the root with a directory for each snapshot, and
	// one whose name begins with unfinished for each that is being made or removed.
	snapshotsDir = "snapshots"
	unfinished   = "."
	// cloneTime bounds the making of a pod of a snapshot.
	cloneTime = 5 * time.Minute
)

// snapshotName is what a snapshot may be called.
var snapshotName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9_.]{0,61}[a-z0-9])?$`)

// podName is what Kubernetes lets pods be called, with up to maxPodName bytes.
var podName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

const maxPodName = 253

// Snapshot is a checkpoint of a pod that the node keeps unpacked, to make pods of it.
type Snapshot struct {
	Name string `json:"name"`
	// Path is what [Manager.RestorePod] takes.
	Path string `json:"path"`
	// Pod is the NAMESPACE/NAME that it was made of, Containers those that it has.
	Pod        string    `json:"pod"`
	Containers []string  `json:"containers"`
	CreatedAt  time.Time `json:"createdAt"`
	// Bytes is what it takes of the disk. Pods that are being made of it take no more.
	Bytes int64 `json:"bytes"`
}

func (m *Manager) snapshotPath(name string) string { return filepath.Join(m.Root, snapshotsDir, name) }

// snapshotAt returns the snapshot that is at a path.
func (m *Manager) snapshotAt(path string) (name string, ok bool) {
	name = filepath.Base(path)
	return name, filepath.Clean(path) == m.snapshotPath(name) && snapshotName.MatchString(name)
}

// TakeSnapshot saves all running containers of a pod at one moment, and lets them go on.
// A limit of 0 is the default. The error is [ErrExists] for a name that is taken.
func (m *Manager) TakeSnapshot(ctx context.Context, id, name string, limit time.Duration) (err error) {
	p, err := m.pod(id)
	if err != nil {
		return err
	}
	r := p.record()
	defer func() {
		if err != nil {
			err = fmt.Errorf("snapshot sandbox %s: %w", r.ID, err)
		}
	}()
	list, err := m.checkSnapshot(r, name, limit)
	if err != nil {
		return err
	}
	if limit == 0 {
		limit = checkpointTime
	}

	ctx, end := m.activity.begin(ctx, p.operation("snapshot"))
	defer func() { end(err) }()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w after %v", ErrTimeout, limit))
	defer cancel()
	draft := m.snapshotPath(unfinished + newID()[:16])
	if err := os.MkdirAll(draft, 0o700); err != nil {
		return fmt.Errorf("make directory for a snapshot: %w", err)
	}
	defer func() { err = errors.Join(err, removeTree(context.WithoutCancel(ctx), draft)) }()

	archive := map[string]string{}
	for i, c := range list {
		archive[c.ID] = fmt.Sprintf("container-%d", i)
	}
	err = p.capture(ctx, idsOf(list), saving{finish: func(ctx context.Context, f *frozen) error {
		enter(ctx, "keep the snapshot of container "+f.c.Config.Msg.GetMetadata().GetName(), false)
		return f.stage.Settle(ctx, filepath.Join(draft, archive[f.c.ID]))
	}})
	if err != nil {
		return err
	}
	text, err := json.Marshal(r.dump(list, func(i int) string { return archive[list[i].ID] }))
	if err != nil {
		return fmt.Errorf("encode %s: %w", checkpoint.PodFile, err)
	}
	if err := durable.WriteFile(filepath.Join(draft, checkpoint.PodFile), text, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", checkpoint.PodFile, err)
	}
	return m.publishSnapshot(draft, name)
}

// checkSnapshot checks a request, and returns the containers that it is about.
func (m *Manager) checkSnapshot(r *Record, name string, limit time.Duration) (running []*Container, err error) {
	switch _, err := os.Lstat(m.snapshotPath(name)); {
	case !snapshotName.MatchString(name):
		return nil, fmt.Errorf("%w: a snapshot cannot be called %.100q: it must match %s", ErrInvalid, name, snapshotName)
	case limit < 0:
		return nil, fmt.Errorf("%w: time-out %v", ErrInvalid, limit)
	case err == nil:
		return nil, fmt.Errorf("snapshot %s: %w", name, ErrExists)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("look for snapshot %s: %w", name, err)
	case !r.Ready():
		return nil, fmt.Errorf("it is not ready: %w", ErrState)
	}

	for _, c := range r.Containers {
		if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running = append(running, c)
		}
	}
	if len(running) == 0 {
		return nil, fmt.Errorf("no container of it is running: %w", ErrState)
	}
	return running, nil
}

// publishSnapshot gives a draft its name, unless another has it by now.
func (m *Manager) publishSnapshot(draft, name string) error {
	err := unix.Renameat2(unix.AT_FDCWD, draft, unix.AT_FDCWD, m.snapshotPath(name), unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("snapshot %s: %w", name, ErrExists)
	}
	if err != nil {
		return fmt.Errorf("name snapshot %s: %w", name, err)
	}
	return durable.SyncDir(filepath.Join(m.Root, snapshotsDir))
}

// Snapshots lists the snapshots of the node, by their names.
func (m *Manager) Snapshots() ([]Snapshot, error) {
	entries, err := os.ReadDir(filepath.Join(m.Root, snapshotsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}

	var list []Snapshot
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), unfinished) {
			continue
		}
		s, err := m.snapshot(e.Name())
		if errors.Is(err, ErrNotFound) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

func (m *Manager) snapshot(name string) (Snapshot, error) {
	s := Snapshot{Name: name, Path: m.snapshotPath(name)}
	dump, err := m.readSnapshot(name)
	if err != nil {
		return s, err
	}
	info, err := os.Stat(s.Path)
	if err != nil {
		return s, fmt.Errorf("read snapshot %s: %w", name, absent(err))
	}

	meta := dump.Config.Msg.GetMetadata()
	s.Pod, s.CreatedAt = meta.GetNamespace()+"/"+meta.GetName(), info.ModTime()
	for _, c := range dump.Containers {
		s.Containers = append(s.Containers, c.Name)
		size, err := checkpoint.OpenSnapshot(filepath.Join(s.Path, c.Archive)).Size()
		if err != nil {
			return s, fmt.Errorf("read snapshot %s: %w", name, absent(err))
		}
		s.Bytes += size
	}
	return s, nil
}

// absent is [ErrNotFound] for a file of a snapshot that is not there.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	return err
}

func (m *Manager) readSnapshot(name string) (*PodDump, error) {
	if !snapshotName.MatchString(name) {
		return nil, fmt.Errorf("%w: no snapshot is called %.100q", ErrInvalid, name)
	}
	text, err := os.ReadFile(filepath.Join(m.snapshotPath(name), checkpoint.PodFile))
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", name, absent(err))
	}
	dump, err := decodeDump(text)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", name, err)
	}
	return dump, nil
}

// RemoveSnapshot removes a snapshot. Pods that were made of it stay.
func (m *Manager) RemoveSnapshot(ctx context.Context, name string) error {
	if !snapshotName.MatchString(name) {
		return fmt.Errorf("remove snapshot: %w: none is called %.100q", ErrInvalid, name)
	}
	gone := m.snapshotPath(unfinished + newID()[:16])
	if err := os.Rename(m.snapshotPath(name), gone); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", name, absent(err))
	}
	return removeTree(context.WithoutCancel(ctx), gone)
}

// dropDrafts removes, in the background, the snapshots that the last daemon was making or
// removing.
func (m *Manager) dropDrafts() {
	entries, err := os.ReadDir(filepath.Join(m.Root, snapshotsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		warn(err, "look for unfinished snapshots")
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), unfinished) {
			m.wg.Go(func() { warn(removeTree(m.ctx, m.snapshotPath(e.Name())), "remove an unfinished snapshot") })
		}
	}
}

// cloneSnapshot opens a snapshot for a pod that is made of it.
func (m *Manager) cloneSnapshot(ctx context.Context, name string, r RestoreRequest) (map[string]*origin, error) {
	from, own, err := m.restoreFrom()
	if err != nil {
		return nil, err
	}
	if err := from.Check(own); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", name, err)
	}
	dump, err := m.readSnapshot(name)
	if err != nil {
		return nil, err
	}
	if err := dump.check(r); err != nil {
		return nil, err
	}

	made := map[string]*origin{}
	parent := filepath.Join(m.Root, stagesDir)
	for _, c := range dump.Containers {
		id := newID()
		u, err := checkpoint.OpenSnapshot(filepath.Join(m.snapshotPath(name), c.Archive)).Clone(ctx, parent, id)
		if err != nil {
			return made, fmt.Errorf("container %s: %w", c.Name, absent(err))
		}
		made[c.Name] = &origin{unpacked: u, dir: filepath.Join(parent, id), config: c.Config.Msg, trusted: true}
	}
	return made, nil
}

// CloneOptions say how a pod is made of a snapshot.
type CloneOptions struct {
	// Name is that of the pod.
	Name string
	// Merge has the kernel merge pages of its processes that are equal to those of other pods
	// with this option, until they are written (KSM). Whoever can measure how long it takes to write a
	// page learns whether another pod has the same.
	Merge bool
}

// ksmRun is where the kernel says whether it merges equal pages.
const ksmRun = "/sys/kernel/mm/ksm/run"

// checkMerge returns an error unless the kernel merges pages.
func checkMerge() error {
	// Before, it would end with the program that makes the processes.
	if kernel, err := host.Kernel(); err == nil && !kernel.AtLeast(6, 7) {
		return fmt.Errorf("this kernel, Linux %s, cannot merge memory of what a process starts: that takes Linux 6.7: %w", kernel, ErrState)
	}
	text, err := os.ReadFile(ksmRun)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("this kernel cannot merge memory: it has no KSM: %w", ErrState)
	}
	if err != nil {
		return fmt.Errorf("find out whether memory is merged: %w", err)
	}
	if strings.TrimSpace(string(text)) != "1" {
		return fmt.Errorf("memory is not merged on this node: write 1 to %s: %w", ksmRun, ErrState)
	}
	return nil
}

// Clone makes a pod of a snapshot, with a UID and a name of its own, in the snapshot's
// namespace, and starts its containers. It has the configuration of the pod that was
// saved, but for the ports of the node, of which no two pods can have the same. After an
// error nothing of it is left.
func (m *Manager) Clone(ctx context.Context, snapshot string, o CloneOptions) (id string, err error) {
	name := o.Name
	if o.Merge {
		if err := checkMerge(); err != nil {
			return "", fmt.Errorf("clone snapshot %.100s: %w", snapshot, err)
		}
	}
	if len(name) > maxPodName || !podName.MatchString(name) {
		return "", fmt.Errorf("clone snapshot %.100s: %w: a pod cannot be called %.100q: it must match %s", snapshot, ErrInvalid, name, podName)
	}
	dump, err := m.readSnapshot(snapshot)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cloneTime, fmt.Errorf("%w after %v", ErrTimeout, cloneTime))
	defer cancel()
	r := RestoreRequest{Path: m.snapshotPath(snapshot), Config: cloneConfig(dump.Config.Msg, name), Handler: dump.Handler, Start: true, merge: o.Merge}
	for _, c := range dump.Containers {
		r.Containers = append(r.Containers, proto.CloneOf(c.Config.Msg))
		relabel(r.Containers[len(r.Containers)-1].GetLabels(), r.Config.GetMetadata())
	}

	id, _, err = m.RestorePod(ctx, r)
	if err != nil {
		return "", fmt.Errorf("clone snapshot %s: %w", snapshot, err)
	}
	return id, nil
}

// cloneConfig is the configuration of a pod that is made of another's snapshot.
func cloneConfig(was *runtimeapi.PodSandboxConfig, name string) *runtimeapi.PodSandboxConfig {
	c := proto.CloneOf(was)
	c.Metadata.Name, c.Metadata.Uid, c.Metadata.Attempt = name, uuid.NewString(), 0
	relabel(c.GetLabels(), c.Metadata)
	if c.LogDirectory != "" {
		c.LogDirectory = filepath.Join(filepath.Dir(c.LogDirectory), strings.Join([]string{c.Metadata.Namespace, name, c.Metadata.Uid}, "_"))
	}
	c.PortMappings = slices.DeleteFunc(c.PortMappings, func(p *runtimeapi.PortMapping) bool { return p.GetHostPort() != 0 })
	return c
}

// relabel has the labels by which kubelet and its tools find a pod say which it is.
func relabel(labels map[string]string, meta *runtimeapi.PodSandboxMetadata) {
	for key, value := range map[string]string{"io.kubernetes.pod.name": meta.GetName(), "io.kubernetes.pod.uid": meta.GetUid()} {
		if _, ok := labels[key]; ok {
			labels[key] = value
		}
	}
}
