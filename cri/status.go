package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/keeper/client"
)

// Version names the runtime.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version: kubeletVersion, RuntimeName: runtimeName, RuntimeVersion: s.RuntimeVersion, RuntimeApiVersion: apiVersion,
	}, nil
}

// Status reports whether pods can be run, and the features of the handlers.
func (s *Server) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.Network.Status(ctx); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}

	ready := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	if err := s.Pods.Healthy(); err != nil {
		ready.Status, ready.Reason, ready.Message = false, "KeeperLost", err.Error()
		if errors.Is(err, client.ErrSilent) {
			ready.Reason = "KeeperSilent"
		}
	}

	out := &runtimeapi.StatusResponse{
		Status:   &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{ready, network}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: true, MountOptions: true},
	}

	for _, name := range append([]string{""}, s.Pods.Handlers()...) {
		out.RuntimeHandlers = append(out.RuntimeHandlers, &runtimeapi.RuntimeHandler{
			Name: name,
			Features: &runtimeapi.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: s.Host.RecursiveReadOnly.OK(), UserNamespaces: s.Host.UserNS.OK() && s.Host.IDMapMounts.OK() && s.Host.OverlayIDMap.OK(),
			},
		})
	}

	if !r.GetVerbose() {
		return out, nil
	}
	var err error
	out.Info, err = verbose(map[string]any{"config": s.Settings(), "cni": s.Network.Info(), "host": s.Host, "golang": runtime.Version()})
	if err != nil {
		return nil, err
	}

	// Tools expect this one as plain text, not JSON.
	out.Info["lastCNILoadStatus"] = "OK"
	if !network.Status {
		out.Info["lastCNILoadStatus"] = network.Message
	}

	return out, nil
}

// RuntimeConfig returns the cgroup driver, for kubelet to use the same.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.CgroupDriver == "systemd" {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig passes the pod CIDR on, which matters only to crisp's own
// network: otherwise it is part of the CNI configuration.
func (s *Server) UpdateRuntimeConfig(_ context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if err := s.Network.SetPodCIDR(r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// verbose encodes the values of an info map.
func verbose(values map[string]any) (map[string]string, error) {
	out := map[string]string{}
	for k, v := range values {
		data, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encode %s for a verbose response: %w", k, err)
		}
		out[k] = string(data)
	}
	return out, nil
}
