package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/admin"
)

// ownSaver has the daemon save a program: as an archive, which a container is made of in
// the same pod, as a pod's archives, or as a snapshot, of both of which a pod is made.
type ownSaver struct {
	*bench
	kind    string
	t       *target
	program string
	dir     string // for what is saved

	p         *pod
	container *runtimeapi.ContainerConfig
}

// saved is the name of the snapshot.
const saved = "bench"

func (s *ownSaver) name() string { return s.kind }

func (s *ownSaver) quiet() *client { return s.client(s.t, func(string, time.Duration) {}) }

func (s *ownSaver) path(name string) string { return filepath.Join(s.dir, name) }

func (s *ownSaver) run(ctx context.Context, size int, find string) (err error) {
	if err := os.MkdirAll(s.path("pod"), 0o700); err != nil {
		return err
	}
	c := s.quiet()
	c.shape = func(p *runtimeapi.PodSandboxConfig, container *runtimeapi.ContainerConfig) {
		onNodeNetwork(p, container)
		container.Command = []string{"/program", strconv.Itoa(size), find}
		container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/program", HostPath: s.program, Readonly: true}}
		container.Linux.Resources.MemoryLimitInBytes = 0
		s.container = container
	}
	s.p, err = c.start(ctx, s.bench.name())
	return err
}

func (s *ownSaver) save(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	switch s.kind {
	case archived:
		_, err := s.t.runtime.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{
			ContainerId: s.p.container, Location: s.path("container.tar"), Timeout: int64(callTime.Seconds()),
		})
		return err
	case archivedPod:
		_, err := s.t.runtime.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{
			PodSandboxId: s.p.id, OutputPath: s.path("pod"), ContainerIds: []string{s.p.container},
		})
		return err
	}
	return s.change(ctx, http.MethodPost, url.Values{"pod": {s.p.id}, "name": {saved}, "limit": {callTime.String()}})
}

// change makes a request about snapshots.
func (s *ownSaver) change(ctx context.Context, method string, query url.Values) error {
	daemon := admin.NewClient(filepath.Join(s.t.dir, "state", admin.Socket))
	defer daemon.Close()
	done, err := daemon.Change(ctx, method, admin.SnapshotsPath+"?"+query.Encode())
	if err == nil && done.Error != "" {
		err = errors.New(done.Error)
	}
	return err
}

func (s *ownSaver) end(ctx context.Context) error {
	if s.kind != archived {
		err := s.quiet().removePod(ctx, s.p)
		s.p = nil
		return err
	}
	_, stop := s.t.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: s.p.container})
	_, remove := s.t.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: s.p.container})
	return errors.Join(stop, remove)
}

func (s *ownSaver) prepare(ctx context.Context) error {
	if s.kind == archived {
		s.container.Image = &runtimeapi.ImageSpec{Image: s.path("container.tar")}
		r, err := s.t.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.p.id, Config: s.container, SandboxConfig: s.p.config})
		s.p.container = r.GetContainerId()
		return err
	}

	from := s.path("pod")
	if s.kind == snapshotted {
		from = filepath.Join(s.t.dir, "root", "snapshots", saved)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	name := s.bench.name()
	group, err := s.cgroups.make(ctx, name)
	if err != nil {
		return err
	}
	s.p = &pod{group: group, config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: fmt.Sprintf("%s-%d", name, os.Getpid()), Namespace: "bench"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: group.Path(), SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: s.container.Linux.SecurityContext.NamespaceOptions,
		}},
	}}
	r, err := s.t.runtime.RestorePod(ctx, &runtimeapi.RestorePodRequest{
		CheckpointPath: from, Config: s.p.config, ContainerConfigs: []*runtimeapi.ContainerConfig{s.container},
	})
	if err != nil {
		return err
	}
	s.p.id, s.p.container = r.PodSandboxId, r.RestoredContainers[0].GetContainerId()
	return nil
}

func (s *ownSaver) restore(ctx context.Context) error {
	_, err := s.t.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: s.p.container})
	return err
}

func (s *ownSaver) logs() (save, restore string) {
	root := filepath.Join(s.t.dir, "root")
	return filepath.Join(root, "checkpoints/*/checkpoint/dump.log"), filepath.Join(root, "pods/*/*/checkpoint/start/restore.log")
}

func (s *ownSaver) drop(ctx context.Context) (err error) {
	if s.p != nil {
		err = s.quiet().removePod(ctx, s.p)
	}
	if s.kind == snapshotted {
		if _, e := os.Stat(filepath.Join(s.t.dir, "root", "snapshots", saved)); e == nil {
			err = errors.Join(err, s.change(ctx, http.MethodDelete, url.Values{"name": {saved}}))
		}
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}
