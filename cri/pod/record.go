package pod

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/network/netdev"
	"crisp/runtime/durable"
	"crisp/runtime/hook"
)

// recordVersion is the format of record files that this build writes.
//
// Version 1 had the whole pod in each line of the file.
const recordVersion = 2

// Record is the state of a pod. It is immutable once published: change a clone.
// On disk it is the values of the journal ROOT/pods/ID/record.jsonl: its own
// fields are the value "pod", and what is big or belongs to a container is
// separate, so that a change is as cheap in a big pod as in a small one. See
// [save].
type Record struct {
	Version int
	// BootID is the kernel's boot id at creation: processes and namespaces of
	// another boot no longer exist, whatever the other fields say.
	BootID string
	ID     string
	Config Message[*runtimeapi.PodSandboxConfig] `json:"-"`
	// Handler is the requested runtime handler, "" for the default.
	Handler string
	// Restoring means that the pod's containers are being created of a checkpoint:
	// without all of them it is to be removed.
	Restoring bool `json:",omitempty"`
	// Arrived is the token of the move by which the pod came here: it is here unless it is
	// Restoring. Moving is set when it has been handed over to another node, see package move;
	// it is frozen then.
	Arrived string  `json:",omitempty"`
	Moving  *Moving `json:",omitempty"`
	// Merge means that its memory is merged with that of other clones, see [CloneOptions].
	Merge bool `json:",omitempty"`
	// WantIPs are the addresses that it had where it came from, and is to have here.
	WantIPs []string `json:",omitempty"`
	// CreatedAt is in nanoseconds since the epoch.
	CreatedAt int64
	// Phase is the last step of sandboxSteps that was started, phaseReady when
	// all are done, phaseStopped after StopPodSandbox.
	Phase string
	// NetNS is the path at which the pod's network namespace is pinned.
	NetNS string `json:",omitempty"`
	// SELinuxLevel is the level of its containers' labels, "" without SELinux.
	SELinuxLevel string   `json:",omitempty"`
	IPs          []string `json:",omitempty"`
	// NetDevices are the node's network devices that the pod has, or was about to
	// get, by their names on the node.
	NetDevices map[string]netdev.Device `json:",omitempty"`
	// Pause is PID 1 of a pod that shares its PID namespace.
	Pause *Process `json:",omitempty"`
	// Observed means that the pod has a first process although no container
	// shares a PID namespace with it, see [Options].
	Observed bool `json:",omitempty"`
	// Procfs means that the pod's base has the procfs of that PID namespace;
	// those created by older versions have none.
	Procfs bool `json:",omitempty"`
	// Refilled means that a cgroup was made, or was about to be, whose process fills the pod's
	// shared memory.
	Refilled bool `json:",omitempty"`
	// Reason is why a sandbox is not ready, for its status.
	Reason string `json:",omitempty"`
	// Overhead and Resources are those of the last UpdatePodSandboxResources.
	Overhead   *Message[*runtimeapi.LinuxContainerResources] `json:",omitempty"`
	Resources  *Message[*runtimeapi.LinuxContainerResources] `json:",omitempty"`
	Containers []*Container                                  `json:"-"`
}

// Moving says to whom a pod has been handed over, and in which attempt: Node is what the user
// called it, and Key the public key of its checkpoints.
type Moving struct{ Token, Node, Key string }

// Process identifies a process even if its pid is reused.
type Process struct {
	Pid int
	// StartTicks is field 22 of /proc/PID/stat: clock ticks since boot.
	StartTicks uint64
}

// Container is the state of a container; immutable like its [Record].
type Container struct {
	ID     string
	Config Message[*runtimeapi.ContainerConfig] `json:"-"`
	// ImageID is the id of the image whose layers are the root file system;
	// ImageRef is the name that the user requested.
	ImageID, ImageRef string
	// ImageDigest is the image as repository@digest, "" if it has none, or if
	// an older version wrote the record.
	ImageDigest string `json:",omitempty"`
	// Phase is the last step of containerSteps that was started, phaseReady
	// when all are done.
	Phase string
	// Times are in nanoseconds since the epoch, zero for "not yet".
	CreatedAt, StartedAt, FinishedAt int64
	ExitCode                         int32
	Reason, Message                  string `json:",omitempty"`
	Process                          *Process
	CgroupPath                       string
	LogPath                          string `json:",omitempty"`
	StopSignal                       int32
	User                             UserIDs
	// Frozen means that the container is frozen for a checkpoint or a commit, or was about
	// to be.
	Frozen bool `json:",omitempty"`
	// Checkpoint means that the container is started from the checkpoint in its
	// directory.
	Checkpoint bool `json:",omitempty"`
	// CheckpointTrusted means that one who is trusted has signed it.
	CheckpointTrusted bool `json:",omitempty"`
	// Left marks a creation that failed and could not be undone.
	Left bool `json:",omitempty"`
	// Resources are the current limits, with updates.
	Resources *Message[*runtimeapi.LinuxContainerResources] `json:",omitempty"`
	// PluginLimits are limits from the node's plugins that the CRI has no field for.
	PluginLimits *specs.LinuxResources `json:",omitempty"`
	// Plugins are the plugins that adjusted the container, with what they set.
	Plugins []string `json:",omitempty"`
	// IntelRDT is what the container has of Intel RDT, nil for nothing.
	IntelRDT *specs.LinuxIntelRdt `json:",omitempty"`
	// PIDTarget is the container whose PID namespace this one joins.
	PIDTarget string `json:",omitempty"`
	// HookSources are the sources of the spec's hooks.
	HookSources hook.Sources `json:",omitempty"`
	// HooksBegun means that a start has run hooks, or was about to: from then on
	// the poststop hooks are owed. PoststopDone is how many of them have run, and
	// HooksEnded means that nothing is left to do.
	HooksBegun   bool `json:",omitempty"`
	PoststopDone int  `json:",omitempty"`
	HooksEnded   bool `json:",omitempty"`
	// ImageVolumes are the image mounts, in the order of the spec.
	ImageVolumes []ImageVolume `json:",omitempty"`
}

// limits are the current resources, nil for none.
func (c *Container) limits() *runtimeapi.LinuxContainerResources {
	if c.Resources == nil {
		return nil
	}
	return c.Resources.Msg
}

// ImageVolume is an image, or a directory of it, mounted at Path.
type ImageVolume struct {
	Path, ImageID string
	SubPath       string `json:",omitempty"`
}

// UserIDs is the identity with which a container's first process starts.
type UserIDs struct {
	UID, GID uint32
	Groups   []uint32 `json:",omitempty"`
}

// State derives the CRI state from the container's times.
func (c *Container) State() runtimeapi.ContainerState {
	switch {
	case c.Phase != phaseReady:
		return runtimeapi.ContainerState_CONTAINER_UNKNOWN
	case c.FinishedAt != 0:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case c.StartedAt != 0:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	default:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	}
}

// StateName is the state in lower case, for messages.
func (c *Container) StateName() string {
	return strings.ToLower(strings.TrimPrefix(c.State().String(), "CONTAINER_"))
}

// Listed reports whether the container is in lists: not while it is created.
func (c *Container) Listed() bool { return c.Phase == phaseReady || c.Left }

// Ready reports whether the sandbox is in the READY state.
func (r *Record) Ready() bool { return r.Phase == phaseReady }

// begun reports whether the sandbox's creation is not complete.
func (r *Record) begun() bool {
	return r.Phase != phaseReady && r.Phase != phaseStopping && r.Phase != phaseStopped
}

// Container returns the container with the given id, or nil.
func (r *Record) Container(id string) *Container {
	for _, c := range r.Containers {
		if c.ID == id {
			return c
		}
	}
	return nil
}

func (r *Record) clone() *Record {
	n := *r
	n.Containers = slices.Clone(r.Containers)
	return &n
}

// edit replaces the container with the given id by a changed copy.
func (r *Record) edit(id string, change func(*Container)) bool {
	for i, c := range r.Containers {
		if c.ID == id {
			n := *c
			change(&n)
			r.Containers[i] = &n
			return true
		}
	}
	return false
}

func (r *Record) drop(id string) {
	r.Containers = slices.DeleteFunc(r.Containers, func(c *Container) bool { return c.ID == id })
}

// Message is a protobuf message inside a record, in protobuf's JSON form.
type Message[M proto.Message] struct{ Msg M }

func message[M proto.Message](m M) Message[M] { return Message[M]{Msg: m} }

// MarshalJSON returns the message in protobuf's JSON form.
func (m Message[M]) MarshalJSON() ([]byte, error) {
	if !m.Msg.ProtoReflect().IsValid() {
		return []byte("null"), nil
	}
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m.Msg)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.Msg.ProtoReflect().Descriptor().Name(), err)
	}
	return raw, nil
}

// UnmarshalJSON reads protobuf's JSON form; fields of a newer API are ignored.
func (m *Message[M]) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	var zero M
	msg := zero.ProtoReflect().New().Interface().(M)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, msg); err != nil {
		return err
	}
	m.Msg = msg
	return nil
}

// store has records on disk, one directory per pod.
type store struct{ dir, bootID string }

// openStore creates the store's directory if it is missing. Its path is
// resolved here, once: a volume below it is relabelled only if no link leads
// there.
func openStore(dir, bootID string) (store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return store{}, fmt.Errorf("create directory for pods: %w", err)
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return store{}, fmt.Errorf("resolve directory for pods: %w", err)
	}
	return store{dir: dir, bootID: bootID}, nil
}

func (s store) podDir(id string) string { return filepath.Join(s.dir, id) }

func (s store) recordPath(id string) string { return filepath.Join(s.podDir(id), "record.jsonl") }

// Names of a record's values in its journal; those of a container end with its
// ID. A container's own fields change a few times, its configuration never
// does.
const (
	podValue        = "pod"
	configValue     = "config"
	containerPrefix = "container "
	ofConfigPrefix  = "config "
)

// save writes the values in which next differs from old, which is the record in
// the journal unless that is new.
func save(j *durable.Journal, old, next *Record) error {
	if j.Fresh() {
		old = &Record{}
	}
	change, err := difference(old, next)
	if err != nil {
		return fmt.Errorf("encode record of pod %s: %w", next.ID, err)
	}
	if err := j.Append(change); err != nil {
		return fmt.Errorf("write record of pod %s: %w", next.ID, err)
	}
	return nil
}

// difference encodes the values in which two records differ.
func difference(old, next *Record) (durable.Values, error) {
	e := encoder{values: durable.Values{}}
	e.add(podValue, next)
	if old.Config.Msg != next.Config.Msg {
		e.add(configValue, next.Config)
	}

	for _, c := range next.Containers {
		before := old.Container(c.ID)
		if before == c {
			continue
		}
		e.add(containerPrefix+c.ID, c)
		if before == nil || before.Config.Msg != c.Config.Msg {
			e.add(ofConfigPrefix+c.ID, c.Config)
		}
	}

	for _, c := range old.Containers {
		if next.Container(c.ID) == nil {
			e.values[containerPrefix+c.ID], e.values[ofConfigPrefix+c.ID] = nil, nil
		}
	}

	return e.values, e.err
}

// encoder encodes values until one fails.
type encoder struct {
	values durable.Values
	err    error
}

func (e *encoder) add(name string, v any) {
	data, err := json.Marshal(v)
	e.values[name], e.err = data, errors.Join(e.err, err)
}

// loaded is one directory of the store: a record with its journal, or the
// error.
type loaded struct {
	id      string
	record  *Record
	journal *durable.Journal
	err     error
}

// load reads every record, and removes temporary files of a killed writer. Each
// one is loaded independently: a bad one is returned with its error and does
// not affect others.
func (s store) load() ([]loaded, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pod records: %w", err)
	}

	var out []loaded
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}

		// A pod whose creation just started, or that is almost removed, has an
		// empty directory.
		dir := s.podDir(e.Name())
		warn(durable.RemoveTemps(dir), "remove temporary files", "sandbox", e.Name())
		if os.Remove(dir) == nil {
			continue
		}
		out = append(out, s.loadOne(e.Name()))
	}

	return out, nil
}

func (s store) loadOne(id string) loaded {
	path := s.recordPath(id)
	journal, values, err := durable.OpenJournal(path)
	if err != nil && values == nil {
		return loaded{id: id, err: err}
	}

	decode := decodeRecord
	if _, first := values["Version"]; first {
		decode = decodeFirst
		journal.Restart()
	}

	r, bad := decode(values)
	if bad == nil {
		bad = r.check(id)
	}

	// A power cut may leave garbage instead of unsynced lines, and makes them
	// irrelevant too. In the same boot older lines may be outdated.
	if bad == nil && err != nil && r.BootID == s.bootID {
		bad = err
	}
	if bad != nil {
		return loaded{id: id, err: fmt.Errorf("%s: %w", path, bad)}
	}

	return loaded{id: id, record: r, journal: journal}
}

// decodeRecord decodes the values that [save] writes.
func decodeRecord(values durable.Values) (*Record, error) {
	var r Record
	if err := json.Unmarshal(values[podValue], &r); err != nil {
		return nil, fmt.Errorf("decode record: %w", err)
	}

	if r.Version != recordVersion {
		return nil, fmt.Errorf("record of version %d, this build reads %d and 1", r.Version, recordVersion)
	}
	if err := json.Unmarshal(values[configValue], &r.Config); err != nil {
		return nil, fmt.Errorf("decode configuration of the pod: %w", err)
	}

	for name, value := range values {
		id, ok := strings.CutPrefix(name, containerPrefix)
		if !ok {
			continue
		}

		c := &Container{}
		err := json.Unmarshal(value, c)
		// A container of a damaged record has no configuration.
		if config := values[ofConfigPrefix+id]; err == nil && config != nil {
			err = json.Unmarshal(config, &c.Config)
		}
		if err != nil {
			return nil, fmt.Errorf("decode record of container %s: %w", id, err)
		}
		r.Containers = append(r.Containers, c)
	}

	slices.SortFunc(r.Containers, func(a, b *Container) int {
		return cmp.Or(cmp.Compare(a.CreatedAt, b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return &r, nil
}

// decodeFirst decodes a record of version 1, of which each field was a value.
func decodeFirst(values durable.Values) (*Record, error) {
	var old struct {
		Record
		Config     Message[*runtimeapi.PodSandboxConfig]
		Containers []struct {
			Container
			Config Message[*runtimeapi.ContainerConfig]
		}
	}

	data, err := json.Marshal(values)
	if err == nil {
		err = json.Unmarshal(data, &old)
	}
	if err != nil {
		return nil, fmt.Errorf("decode record: %w", err)
	}

	if old.Version != 1 {
		return nil, fmt.Errorf("record of version %d, this build reads %d and 1", old.Version, recordVersion)
	}

	r := old.Record
	r.Version, r.Config = recordVersion, old.Config
	for i := range old.Containers {
		c := &old.Containers[i].Container
		c.Config = old.Containers[i].Config
		r.Containers = append(r.Containers, c)
	}

	return &r, nil
}

// check returns an error unless the record is one of the pod with this ID.
func (r *Record) check(id string) error {
	if r.ID != id || r.Config.Msg.GetMetadata() == nil {
		return errors.New("record is incomplete")
	}
	for _, c := range r.Containers {
		if c.ID == "" {
			return errors.New("record is incomplete: a container has no ID")
		}
	}
	return nil
}
