package cri

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/pod"
)

// CreateContainer creates a container in a sandbox.
func (s *Server) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	id, err := s.Pods.CreateContainer(ctx, r.GetPodSandboxId(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer starts a created container.
func (s *Server) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if err := s.Pods.StartContainer(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer stops a container with a grace period in seconds.
func (s *Server) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := s.Pods.StopContainer(ctx, r.GetContainerId(), seconds(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer removes a container.
func (s *Server) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := s.Pods.RemoveContainer(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers lists containers.
func (s *Server) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.Pods.ListContainers(r.GetFilter())}, nil
}

// StreamContainers lists containers in batches.
func (s *Server) StreamContainers(r *runtimeapi.StreamContainersRequest, out runtimeapi.RuntimeService_StreamContainersServer) error {
	return batches(s.Pods.ListContainers(r.GetFilter()), func(items []*runtimeapi.Container) error {
		return out.Send(&runtimeapi.StreamContainersResponse{Containers: items})
	})
}

// ContainerStatus describes one container.
func (s *Server) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, rec, err := s.Pods.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.ContainerStatusResponse{Status: c.Status()}
	if r.GetVerbose() {
		out.Info, err = verbose(s.Pods.ContainerDetails(rec, c))
	}
	return out, err
}

// UpdateContainerResources changes limits of a container.
func (s *Server) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := s.Pods.UpdateContainer(ctx, r.GetContainerId(), r.GetLinux()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// CheckpointContainer writes the state of a running container to an archive.
func (s *Server) CheckpointContainer(ctx context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	if err := s.Pods.CheckpointContainer(ctx, r.GetContainerId(), r.GetLocation(), seconds(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

// ReopenContainerLog reopens a container's log file, after a rotation.
func (s *Server) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if err := s.Pods.ReopenLog(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// GetContainerEvents streams changes of containers and sandboxes.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out runtimeapi.RuntimeService_GetContainerEventsServer) error {
	sub := s.Pods.Subscribe()
	defer sub.Cancel()
	for {
		select {
		case e, ok := <-sub.C:
			if !ok {
				return sub.Err()
			}
			if err := out.Send(e); err != nil {
				return err
			}
		case <-out.Context().Done():
			return out.Context().Err()
		}
	}
}

// running returns the container for a streaming session, which must be running.
func (s *Server) running(id, what string) (*pod.Container, error) {
	c, _, err := s.Pods.Container(id)
	if err != nil {
		return nil, err
	}
	if c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("%s container %s: it is %s, not running: %w", what, c.ID, c.StateName(), pod.ErrState)
	}
	return c, nil
}
