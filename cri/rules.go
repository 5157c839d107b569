package cri

import (
	crierrors "k8s.io/cri-api/pkg/errors"

	"crisp/cri/cadvisor"
	"crisp/cri/pod"
	"crisp/cri/rpcerr"
	"crisp/cri/spec"
	"crisp/cri/stats"
	"crisp/cri/stream"
	"crisp/image"
	"crisp/network"
	"crisp/runtime/cgroup"
	"crisp/runtime/keeper/client"
	"crisp/runtime/launch"
)

// Rules gives the errors of the packages beneath their gRPC codes. What no
// rule covers is Internal.
func Rules() []rpcerr.Rule {
	return []rpcerr.Rule{
		{Err: pod.ErrImageVolume, Code: rpcerr.FailedPrecondition, Begins: true},
		{Err: pod.ErrNotFound, Code: rpcerr.NotFound},
		{Err: pod.ErrAmbiguous, Code: rpcerr.InvalidArgument},
		{Err: pod.ErrInvalid, Code: rpcerr.InvalidArgument},
		{Err: pod.ErrState, Code: rpcerr.FailedPrecondition},
		{Err: pod.ErrExists, Code: rpcerr.AlreadyExists},
		{Err: pod.ErrUnkillable, Code: rpcerr.DeadlineExceeded},
		{Err: pod.ErrTimeout, Code: rpcerr.DeadlineExceeded},
		{Err: client.ErrLost, Code: rpcerr.Unavailable},
		{Err: client.ErrKeeper, Code: rpcerr.Unavailable},
		{Err: cadvisor.ErrRequest, Code: rpcerr.InvalidArgument},
		{Err: cadvisor.ErrNotStarted, Code: rpcerr.NotFound},
		{Err: spec.ErrInvalid, Code: rpcerr.InvalidArgument},
		{Err: spec.ErrUnsupported, Code: rpcerr.FailedPrecondition},
		{Err: cgroup.ErrParent, Code: rpcerr.InvalidArgument},
		{Err: cgroup.ErrResources, Code: rpcerr.InvalidArgument},
		{Err: cgroup.ErrUnsupported, Code: rpcerr.FailedPrecondition},
		{Err: cgroup.ErrInUse, Code: rpcerr.FailedPrecondition},
		{Err: stats.ErrNotFound, Code: rpcerr.NotFound},
		{Err: stream.ErrInvalid, Code: rpcerr.InvalidArgument},
		{Err: stream.ErrTooMany, Code: rpcerr.ResourceExhausted},
		{Err: stream.ErrStopping, Code: rpcerr.Unavailable},
		{Err: image.ErrNotFound, Code: rpcerr.NotFound},
		{Err: image.ErrAmbiguous, Code: rpcerr.InvalidArgument},
		{Err: image.ErrInvalidReference, Code: rpcerr.InvalidArgument},
		{Err: image.ErrUnavailable, Code: rpcerr.Unavailable, Token: crierrors.ErrRegistryUnavailable},
		{Err: image.ErrDenied, Code: rpcerr.PermissionDenied},
		{Err: image.ErrUnsupported, Code: rpcerr.FailedPrecondition},
		{Err: image.ErrInvalid, Code: rpcerr.FailedPrecondition},
		{Err: image.ErrSubPath, Code: rpcerr.FailedPrecondition},
		{Err: network.ErrNotReady, Code: rpcerr.Unavailable},
		{Err: network.ErrInvalid, Code: rpcerr.InvalidArgument},
		// Not NotFound: kubelet takes that for a container that is gone.
		{Err: launch.ErrNotFound, Code: rpcerr.FailedPrecondition},
		{Err: launch.ErrNotExecutable, Code: rpcerr.FailedPrecondition},
		{Err: launch.ErrNoSource, Code: rpcerr.FailedPrecondition},
		{Err: launch.ErrNoDevice, Code: rpcerr.InvalidArgument},
		{Err: launch.ErrNoIDMap, Code: rpcerr.FailedPrecondition},
		{Err: launch.ErrNoPIDOption, Code: rpcerr.FailedPrecondition},
		{Err: launch.ErrInProcfs, Code: rpcerr.FailedPrecondition},
	}
}
