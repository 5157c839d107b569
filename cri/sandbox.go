package cri

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/audit"
	"crisp/cri/pod"
	"crisp/cri/spec"
)

// RunPodSandbox creates and starts a sandbox.
func (s *Server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	id, err := s.Pods.RunSandbox(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox kills the sandbox's containers and releases its network.
func (s *Server) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	if err := s.Pods.StopSandbox(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes a sandbox with its containers.
func (s *Server) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if err := s.Pods.RemoveSandbox(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus describes one sandbox with its containers.
func (s *Server) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	now := time.Now().UnixNano()
	rec, err := s.Pods.Sandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.PodSandboxStatusResponse{
		Status: rec.Status(), ContainersStatuses: rec.ContainerStatuses(), Timestamp: now,
	}
	if r.GetVerbose() {
		out.Info, err = verbose(s.Pods.SandboxDetails(rec))
	}
	return out, err
}

// ListPodSandbox lists sandboxes.
func (s *Server) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.Pods.ListSandboxes(r.GetFilter())}, nil
}

// StreamPodSandboxes lists sandboxes in batches.
func (s *Server) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, out runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	return batches(s.Pods.ListSandboxes(r.GetFilter()), func(items []*runtimeapi.PodSandbox) error {
		return out.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: items})
	})
}

// UpdatePodSandboxResources records the pod-level limits; their cgroup belongs
// to kubelet.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if err := s.Pods.UpdateSandbox(ctx, r.GetPodSandboxId(), r.GetOverhead(), r.GetResources()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// CheckpointPod writes the state of a pod's running containers to a directory.
func (s *Server) CheckpointPod(ctx context.Context, r *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	if err := s.Pods.CheckpointPod(ctx, r.GetPodSandboxId(), r.GetOutputPath(), r.GetContainerIds(), r.GetOptions()); err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointPodResponse{}, nil
}

// RestorePod creates a pod with its containers of a checkpoint.
func (s *Server) RestorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	id, made, err := s.Pods.RestorePod(ctx, pod.RestoreRequest{
		Path: r.GetCheckpointPath(), Config: r.GetConfig(), Handler: r.GetRuntimeHandler(), Options: r.GetOptions(), Containers: r.GetContainerConfigs(),
	})
	if err != nil {
		return nil, err
	}

	out := &runtimeapi.RestorePodResponse{PodSandboxId: id}
	for _, c := range r.GetContainerConfigs() {
		name := c.GetMetadata().GetName()
		out.RestoredContainers = append(out.RestoredContainers, &runtimeapi.RestoredContainer{Name: name, ContainerId: made[name]})
	}
	return out, nil
}

// PortForward returns the URL of a session with connections to a pod's ports.
func (s *Server) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	for _, port := range r.GetPort() {
		if err := spec.CheckPort(port); err != nil {
			return nil, fmt.Errorf("forward to pod %s: %w", r.GetPodSandboxId(), err)
		}
	}
	rec, err := s.Pods.ReadySandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	r.PodSandboxId = rec.ID
	return s.Streams.GetPortForward(audit.CallerOf(ctx), r)
}

// A message of a stream carries at most batchSize objects and, if it has more
// than one, at most batchBytes: a client accepts 16 MiB, and one pod can have
// 256 KiB of annotations.
const (
	batchSize  = 200
	batchBytes = 1 << 20
)

// batches sends a list in batches; an empty list is one empty message.
func batches[T proto.Message](items []T, send func([]T) error) error {
	for {
		n := batch(items)
		if err := send(items[:n]); err != nil {
			return err
		}
		if items = items[n:]; len(items) == 0 {
			return nil
		}
	}
}

// batch returns how many of the items go into the next message.
func batch[T proto.Message](items []T) int {
	bytes := 0
	for n, item := range items[:min(batchSize, len(items))] {
		bytes += proto.Size(item)
		if n > 0 && bytes > batchBytes {
			return n
		}
	}
	return min(batchSize, len(items))
}
