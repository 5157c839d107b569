//go:build crash

package crash

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/admin"
	"crisp/cri/pod"
	"crisp/test/testkit/inventory"
	"crisp/test/testkit/pace"
)

// updatedMemory is the memory limit that UpdateContainerResources sets, in bytes.
const updatedMemory = 96 << 20

// committed is the image that crisp commit makes.
const committed = "crash/committed:1"

// scene is a node with one pod with one container, as far as these exist.
type scene struct {
	t *testing.T
	n *node
	// ctx is that of the try methods.
	ctx       context.Context // of one test
	pod       *runtimeapi.PodSandboxConfig
	container *runtimeapi.ContainerConfig
	// The IDs that calls returned.
	podID, containerID string
	// saved is the directory of a checkpoint.
	saved string
}

// newScene returns a scene whose pod does something in every step of its table:
// it has a pause process and a host port.
func (n *node) newScene(t *testing.T) *scene {
	options := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}
	return &scene{
		t: t, n: n, ctx: context.WithoutCancel(t.Context()),
		pod: &runtimeapi.PodSandboxConfig{
			Metadata:     &runtimeapi.PodSandboxMetadata{Name: "crash", Namespace: "test", Uid: fmt.Sprint(time.Now().UnixNano())},
			Hostname:     "crash",
			LogDirectory: filepath.Join(n.Dir, "logs"),
			PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 18080}},
			Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options}},
		},
		container: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
			Image:    &runtimeapi.ImageSpec{Image: busybox},
			Command:  []string{"sleep", "1000"},
			LogPath:  "main.log",
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources:       &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: options},
			},
		},
	}
}

// The calls. Those of the try methods may fail.

func (s *scene) tryRun() error {
	r, err := within(s.ctx, s.n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: s.pod})
	s.podID = r.GetPodSandboxId()
	return err
}

func (s *scene) tryCreate() error {
	r, err := within(s.ctx, s.n.Runtime.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: s.podID, Config: s.container, SandboxConfig: s.pod})
	s.containerID = r.GetContainerId()
	return err
}

func (s *scene) tryStart() error {
	_, err := within(s.ctx, s.n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: s.containerID})
	return err
}

func (s *scene) tryStop() error {
	_, err := within(s.ctx, s.n.Runtime.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: s.containerID})
	return err
}

func (s *scene) tryRemove() error {
	_, err := within(s.ctx, s.n.Runtime.RemoveContainer, &runtimeapi.RemoveContainerRequest{ContainerId: s.containerID})
	return err
}

func (s *scene) tryStopPod() error {
	_, err := within(s.ctx, s.n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.podID})
	return err
}

func (s *scene) tryRemovePod() error {
	_, err := within(s.ctx, s.n.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.podID})
	return err
}

func (s *scene) tryUpdate() error {
	_, err := within(s.ctx, s.n.Runtime.UpdateContainerResources, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: s.containerID, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: updatedMemory},
	})
	return err
}

func (s *scene) tryUpdatePod() error {
	_, err := within(s.ctx, s.n.Runtime.UpdatePodSandboxResources, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: s.podID, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 512},
	})
	return err
}

func (s *scene) tryExec() error {
	r, err := within(s.ctx, s.n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: s.containerID, Cmd: []string{"sh", "-c", "echo out; sleep 0.01"}})
	if err == nil && string(r.Stdout) != "out\n" {
		s.t.Errorf("a command printed %q", r.Stdout)
	}
	return err
}

// ownPIDs gives the container a PID namespace of its own, without which it cannot
// be checkpointed.
func (s *scene) ownPIDs() {
	s.pod.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_CONTAINER
}

func (s *scene) tryCheckpoint() error {
	file := filepath.Join(s.t.TempDir(), "checkpoint.tar")
	_, err := within(s.ctx, s.n.Runtime.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{ContainerId: s.containerID, Location: file})
	if _, there := os.Stat(file); there != nil && err == nil {
		s.t.Errorf("no archive: %v", there)
	}
	return err
}

// save makes a checkpoint of the pod, and removes the pod.
func (s *scene) save() {
	s.t.Helper()
	s.saved = s.t.TempDir()
	call(s.t, s.n.Runtime.CheckpointPod, &runtimeapi.CheckpointPodRequest{PodSandboxId: s.podID, OutputPath: s.saved, ContainerIds: []string{s.containerID}})
	s.removeAll()
}

func (s *scene) restore() { s.t.Helper(); s.must("restore pod", s.tryRestore()) }

func (s *scene) tryRestore() error {
	r, err := within(s.ctx, s.n.Runtime.RestorePod, &runtimeapi.RestorePodRequest{
		CheckpointPath: s.saved, Config: s.pod, ContainerConfigs: []*runtimeapi.ContainerConfig{s.container},
	})
	if err == nil {
		s.podID, s.containerID = r.PodSandboxId, r.RestoredContainers[0].ContainerId
	}
	return err
}

// tryCommit makes an image of the container, as crisp commit does.
func (s *scene) tryCommit() error {
	_, err := s.ask(http.MethodPost, admin.CommitPath, url.Values{"container": {s.containerID}, "name": {committed}, "limit": {"1m"}})
	return err
}

// snapshotted is the name of the snapshots that are taken.
const snapshotted = "state"

// trySnapshot takes a snapshot of the pod, as crisp snapshot does, unless it is there: a
// call may have ended with its connection alone.
func (s *scene) trySnapshot() error {
	_, err := s.ask(http.MethodPost, admin.SnapshotsPath, url.Values{"pod": {s.podID}, "name": {snapshotted}, "limit": {"1m"}})
	if err != nil && strings.Contains(err.Error(), pod.ErrExists.Error()) {
		return nil
	}
	return err
}

// wantSnapshot checks that there is a snapshot, and nothing beside it.
func (s *scene) wantSnapshot() {
	s.t.Helper()
	for dir, want := range map[string]int{"snapshots": 1, "checkpoints": 0} {
		if list, err := os.ReadDir(filepath.Join(s.n.Dir, "root", dir)); err != nil || len(list) != want {
			s.t.Errorf("in %s are %v, %v", dir, list, err)
		}
	}
}

// snapshot takes a snapshot, and removes the pod.
func (s *scene) snapshot() {
	s.t.Helper()
	s.must("take snapshot", s.trySnapshot())
	s.removePods()
}

// tryClone makes a pod of the snapshot, as crisp clone does.
func (s *scene) tryClone() error {
	id, err := s.ask(http.MethodPost, admin.ClonePath, url.Values{"snapshot": {snapshotted}, "name": {"clone"}})
	if err == nil {
		s.podID = id
	}
	return err
}

// awaitRemoval removes pods that are not ready, and waits until there is no other but one
// that runs: the daemon removes them.
func (s *scene) awaitRemoval() {
	s.t.Helper()
	for end := time.Now().Add(pace.Scale(10 * time.Second)); len(s.pods()) > 0 && !s.runs(); time.Sleep(50 * time.Millisecond) {
		s.removeUnready()
		if time.Now().After(end) {
			s.t.Fatalf("there still are %v", s.pods())
		}
	}
}

// wantClone checks that the only pod is the one that was made, and runs.
func (s *scene) wantClone() {
	s.t.Helper()
	for _, p := range s.pods() {
		s.podID = p.Id
	}
	s.wantPod(runtimeapi.PodSandboxState_SANDBOX_READY)
	for _, c := range s.containers() {
		s.containerID = c.Id
	}
	s.wantAlive()
	s.wantSnapshot()
}

// removeSnapshots removes the snapshot, if there is one.
func (s *scene) removeSnapshots() {
	s.t.Helper()
	if _, err := s.ask(http.MethodDelete, admin.SnapshotsPath, url.Values{"name": {snapshotted}}); err != nil && !strings.Contains(err.Error(), pod.ErrNotFound.Error()) {
		s.t.Errorf("remove snapshot: %v", err)
	}
}

// ask makes a request on the admin socket. Its errors have the codes that calls of the CRI
// would have.
func (s *scene) ask(method, path string, query url.Values) (id string, err error) {
	c := s.n.admin()
	defer c.Close()
	done, err := c.Change(s.ctx, method, path+"?"+query.Encode())
	if err != nil && s.ctx.Err() != nil {
		return "", status.FromContextError(s.ctx.Err()).Err()
	}
	if err != nil {
		return "", status.Error(codes.Unavailable, err.Error())
	}
	if strings.Contains(done.Error, pod.ErrState.Error()) {
		return "", status.Error(codes.FailedPrecondition, done.Error)
	}
	if done.Error != "" {
		return "", errors.New(done.Error)
	}
	return done.ID, nil
}

// wantCommitted checks that there is an image of the container.
func (s *scene) wantCommitted() {
	s.t.Helper()
	r := call(s.t, s.n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: committed}})
	if r.GetImage() == nil {
		s.t.Error("there is no image of the container")
	}
}

// removeCommitted removes images of containers. All but the last have lost their name.
func (s *scene) removeCommitted() {
	s.t.Helper()
	for _, im := range call(s.t, s.n.Images.ListImages, &runtimeapi.ListImagesRequest{}).Images {
		if len(im.RepoTags) == 0 || slices.Contains(im.RepoTags, "docker.io/"+committed) {
			call(s.t, s.n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: im.Id}})
		}
	}
}

// seenLimit returns the memory limit in the container's cgroup.
func (s *scene) seenLimit() int64 {
	s.t.Helper()
	for _, dir := range inventory.Cgroups(s.containerID) {
		for _, file := range []string{"memory.max", "memory.limit_in_bytes"} {
			if data, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
				n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64) // 0 is not wanted either
				return n
			}
		}
	}
	return 0
}

func (s *scene) must(what string, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
}

func (s *scene) run()    { s.t.Helper(); s.must("run pod", s.tryRun()) }
func (s *scene) create() { s.t.Helper(); s.must("create container", s.tryCreate()) }
func (s *scene) start()  { s.t.Helper(); s.must("start container", s.tryStart()) }

// pods lists all pods of the node.
func (s *scene) pods() []*runtimeapi.PodSandbox {
	s.t.Helper()
	return call(s.t, s.n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items
}

// containers lists all containers of the node.
func (s *scene) containers() []*runtimeapi.Container {
	s.t.Helper()
	return call(s.t, s.n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{}).Containers
}

// removeAll removes every pod as kubelet does, which stops it twice.
func (s *scene) removeAll() {
	s.t.Helper()
	defer s.removeCommitted()
	defer s.removeSnapshots()
	s.removePods()
}

func (s *scene) removePods() {
	s.t.Helper()
	for _, p := range s.pods() {
		stop := &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id}
		call(s.t, s.n.Runtime.StopPodSandbox, stop)
		call(s.t, s.n.Runtime.StopPodSandbox, stop)
		call(s.t, s.n.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
	}
	if left := len(s.pods()) + len(s.containers()); left > 0 {
		s.t.Errorf("%d pods and containers are listed after all were removed", left)
	}
}

// wantListed checks that everything on disk is listed and has a status. A call
// whose connection broke may still be in progress, between making a directory and
// listing the pod.
func (s *scene) wantListed() {
	s.t.Helper()
	var listed []string
	for _, p := range s.pods() {
		listed = append(listed, p.Id)
		_, err := try(s.t, s.n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if err != nil && slices.ContainsFunc(s.pods(), func(now *runtimeapi.PodSandbox) bool { return now.Id == p.Id }) {
			s.t.Errorf("status of a listed pod: %v", err)
		}
		if p.Metadata.Namespace != s.pod.Metadata.Namespace {
			s.t.Errorf("pod %s is listed as %s/%s", p.Id, p.Metadata.Namespace, p.Metadata.Name)
		}
	}

	for _, c := range s.containers() {
		if !slices.Contains(listed, c.PodSandboxId) {
			s.t.Errorf("container %s is listed without its pod", c.Id)
		}
		_, err := try(s.t, s.n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
		if err != nil && slices.ContainsFunc(s.containers(), func(now *runtimeapi.Container) bool { return now.Id == c.Id }) {
			s.t.Errorf("status of a listed container: %v", err)
		}
	}

	stray := s.unlisted()
	for end := time.Now().Add(pace.Scale(leaveTime)); len(stray) > 0 && time.Now().Before(end); stray = s.unlisted() {
		time.Sleep(10 * time.Millisecond)
	}
	for _, name := range stray {
		s.t.Errorf("pod %s is on disk but not listed", name)
	}
}

// unlisted returns the pods that have a directory but are not listed.
func (s *scene) unlisted() (stray []string) {
	s.t.Helper()
	var listed []string
	for _, p := range s.pods() {
		listed = append(listed, p.Id)
	}
	directories, err := os.ReadDir(filepath.Join(s.n.Dir, "root/pods"))
	s.must("list directories of pods", err)
	for _, f := range directories {
		if !slices.Contains(listed, f.Name()) {
			stray = append(stray, f.Name())
		}
	}
	return stray
}

// wantPod checks that there is exactly one pod, in the given state.
func (s *scene) wantPod(state runtimeapi.PodSandboxState) {
	s.t.Helper()
	pods := s.pods()
	if len(pods) != 1 || pods[0].Id != s.podID || pods[0].State != state {
		s.t.Fatalf("pods are %v, want only %s, %v", pods, s.podID, state)
	}
	st := call(s.t, s.n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.podID}).Status
	ready := state == runtimeapi.PodSandboxState_SANDBOX_READY
	if s.hostNetwork() {
		ready = false // it has no lease
	}
	if leases := s.n.Leases(); ready && (len(leases) != 1 || leases[0] != st.Network.GetIp()) || !ready && len(leases) != 0 {
		s.t.Errorf("the pod is %v with address %q; leases are %q", state, st.Network.GetIp(), leases)
	}
}

func (s *scene) hostNetwork() bool {
	return s.pod.Linux.SecurityContext.NamespaceOptions.Network == runtimeapi.NamespaceMode_NODE
}

// wantContainer checks that there is exactly one container, in the given state.
func (s *scene) wantContainer(state runtimeapi.ContainerState) *runtimeapi.ContainerStatus {
	s.t.Helper()
	list := s.containers()
	if len(list) != 1 || list[0].Id != s.containerID || list[0].State != state {
		s.t.Fatalf("containers are %v, want only %s, %v", list, s.containerID, state)
	}
	return call(s.t, s.n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: s.containerID}).Status
}

// wantAlive checks that the container runs and accepts commands.
func (s *scene) wantAlive() {
	s.t.Helper()
	s.wantContainer(runtimeapi.ContainerState_CONTAINER_RUNNING)
	count := func() string {
		return string(call(s.t, s.n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{
			ContainerId: s.containerID, Cmd: []string{"sh", "-c", "ps | grep -c '[s]leep 1000'"},
		}).Stdout)
	}

	// The keeper detects the execve by descriptors being closed, which happens
	// shortly before /proc shows the new arguments.
	n := count()
	for end := time.Now().Add(pace.Scale(2 * time.Second)); n == "0\n" && time.Now().Before(end); n = count() {
		time.Sleep(10 * time.Millisecond)
	}

	if n != "1\n" {
		s.t.Errorf("%q processes of the container run, want 1", n)
	}
}

// hasState reports whether a process's status says that it is in a state.
func hasState(status, state string) bool {
	return strings.Contains(status, "\nState:\t"+state+" ")
}
