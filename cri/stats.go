package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStats returns the statistics of one container.
func (s *Server) ContainerStats(ctx context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, _, err := s.Pods.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := s.Stats.Container(ctx, c.ID)
	return &runtimeapi.ContainerStatsResponse{Stats: st}, err
}

// ListContainerStats returns the statistics of running containers.
func (s *Server) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	list, err := s.Stats.Containers(ctx, r.GetFilter())
	return &runtimeapi.ListContainerStatsResponse{Stats: list}, err
}

// StreamContainerStats is ListContainerStats in batches.
func (s *Server) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, out runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	list, err := s.Stats.Containers(out.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return batches(list, func(items []*runtimeapi.ContainerStats) error {
		return out.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: items})
	})
}

// PodSandboxStats returns the statistics of one pod.
func (s *Server) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	rec, err := s.Pods.Sandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st, err := s.Stats.PodSandbox(ctx, rec.ID)
	return &runtimeapi.PodSandboxStatsResponse{Stats: st}, err
}

// ListPodSandboxStats returns the statistics of ready pods.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	list, err := s.Stats.PodSandboxes(ctx, r.GetFilter())
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: list}, err
}

// StreamPodSandboxStats is ListPodSandboxStats in batches.
func (s *Server) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, out runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	list, err := s.Stats.PodSandboxes(out.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return batches(list, func(items []*runtimeapi.PodSandboxStats) error {
		return out.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: items})
	})
}

// ListMetricDescriptors lists all metrics.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: s.Stats.Descriptors()}, nil
}

// ListPodSandboxMetrics returns the metrics of all pods.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	list, err := s.Stats.PodMetrics(ctx)
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: list}, err
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in batches.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, out runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	return s.Stats.StreamPodMetrics(out.Context(), func(list []*runtimeapi.PodSandboxMetrics) error {
		return batches(list, func(items []*runtimeapi.PodSandboxMetrics) error {
			return out.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: items})
		})
	})
}
