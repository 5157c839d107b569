// Package rules maps each error of the packages below the CRI to a gRPC status
// code.
//
// It is the only place where sentinels get codes. A test in test/arch fails
// when a package at the boundary exports an error that the table does not
// cover.
package rules

import (
	"google.golang.org/grpc/codes"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crisp/cri/cadvisor"
	"crisp/cri/nri"
	"crisp/cri/pod"
	"crisp/cri/rpcerr"
	"crisp/cri/spec"
	"crisp/cri/stats"
	"crisp/cri/stream"
	"crisp/image"
	"crisp/network"
	"crisp/network/netdev"
	"crisp/runtime/cgroup"
	"crisp/runtime/checkpoint"
	"crisp/runtime/criu"
	"crisp/runtime/hook"
	"crisp/runtime/keeper/client"
	"crisp/runtime/launch"
	"crisp/runtime/plan"
	"crisp/runtime/resctrl"
	"crisp/runtime/seccomp"
)

// All returns the table, for [rpcerr.New]. The first matching rule applies; an
// error that none matches is Internal.
func All() []rpcerr.Rule {
	return []rpcerr.Rule{
		{Err: pod.ErrImageVolume, Code: codes.FailedPrecondition, Begins: true},
		// Whatever a plugin's own error is.
		{Err: nri.ErrRefused, Code: codes.FailedPrecondition},
		// Not NotFound, if it is about another container.
		{Err: pod.ErrPlugin, Code: codes.FailedPrecondition},
		{Err: pod.ErrNotFound, Code: codes.NotFound},
		{Err: pod.ErrAmbiguous, Code: codes.InvalidArgument},
		{Err: pod.ErrInvalid, Code: codes.InvalidArgument},
		{Err: pod.ErrState, Code: codes.FailedPrecondition},
		{Err: pod.ErrUnsettled, Code: codes.Unavailable},
		{Err: pod.ErrExists, Code: codes.AlreadyExists},
		{Err: pod.ErrUnkillable, Code: codes.DeadlineExceeded},
		{Err: pod.ErrTimeout, Code: codes.DeadlineExceeded},
		{Err: client.ErrLost, Code: codes.Unavailable},
		{Err: client.ErrSilent, Code: codes.Unavailable},
		{Err: client.ErrKeeper, Code: codes.Unavailable},
		{Err: cadvisor.ErrRequest, Code: codes.InvalidArgument},
		{Err: cadvisor.ErrNotStarted, Code: codes.NotFound},
		{Err: spec.ErrInvalid, Code: codes.InvalidArgument},
		{Err: nri.ErrTooMany, Code: codes.ResourceExhausted},
		{Err: nri.ErrFile, Code: codes.FailedPrecondition},
		{Err: spec.ErrUnsupported, Code: codes.FailedPrecondition},
		{Err: cgroup.ErrParent, Code: codes.InvalidArgument},
		{Err: cgroup.ErrResources, Code: codes.InvalidArgument},
		{Err: cgroup.ErrUnsupported, Code: codes.FailedPrecondition},
		{Err: cgroup.ErrInUse, Code: codes.FailedPrecondition},
		{Err: stats.ErrNotFound, Code: codes.NotFound},
		{Err: stream.ErrInvalid, Code: codes.InvalidArgument},
		{Err: stream.ErrTooMany, Code: codes.ResourceExhausted},
		{Err: stream.ErrStopping, Code: codes.Unavailable},
		{Err: image.ErrNotFound, Code: codes.NotFound},
		{Err: image.ErrAmbiguous, Code: codes.InvalidArgument},
		{Err: image.ErrInvalidReference, Code: codes.InvalidArgument},
		{Err: image.ErrUnavailable, Code: codes.Unavailable, Token: crierrors.ErrRegistryUnavailable},
		{Err: image.ErrDenied, Code: codes.PermissionDenied},
		{Err: image.ErrUnsupported, Code: codes.FailedPrecondition},
		{Err: image.ErrInvalid, Code: codes.FailedPrecondition},
		{Err: image.ErrSubPath, Code: codes.FailedPrecondition},
		{Err: network.ErrNotReady, Code: codes.Unavailable},
		{Err: network.ErrInvalid, Code: codes.InvalidArgument},
		{Err: netdev.ErrName, Code: codes.InvalidArgument},
		{Err: netdev.ErrNotFound, Code: codes.FailedPrecondition},
		{Err: netdev.ErrNameTaken, Code: codes.FailedPrecondition},
		{Err: netdev.ErrImmovable, Code: codes.FailedPrecondition},
		// Not NotFound: from that kubelet concludes that the container was
		// removed.
		{Err: launch.ErrNotFound, Code: codes.FailedPrecondition},
		{Err: launch.ErrNotExecutable, Code: codes.FailedPrecondition},
		{Err: resctrl.ErrInvalid, Code: codes.InvalidArgument},
		{Err: resctrl.ErrUnsupported, Code: codes.FailedPrecondition},
		{Err: resctrl.ErrConflict, Code: codes.FailedPrecondition},
		{Err: launch.ErrAgent, Code: codes.FailedPrecondition},
		{Err: launch.ErrNoSource, Code: codes.FailedPrecondition},
		{Err: launch.ErrNoIDMap, Code: codes.FailedPrecondition},
		{Err: launch.ErrNoPIDOption, Code: codes.FailedPrecondition},
		{Err: launch.ErrInProcfs, Code: codes.FailedPrecondition},
		// Their settings are the node's: those of kubelet's and of images are checked
		// before.
		{Err: plan.ErrSpec, Code: codes.FailedPrecondition},
		{Err: plan.ErrUnsupported, Code: codes.FailedPrecondition},
		{Err: plan.ErrTooLarge, Code: codes.FailedPrecondition},
		{Err: seccomp.ErrInvalid, Code: codes.FailedPrecondition},
		{Err: seccomp.ErrUnsupported, Code: codes.FailedPrecondition},
		{Err: seccomp.ErrTooLarge, Code: codes.FailedPrecondition},
		{Err: nri.ErrUnsupported, Code: codes.FailedPrecondition},
		{Err: pod.ErrNoPlugin, Code: codes.Unavailable},
		{Err: criu.ErrMissing, Code: codes.FailedPrecondition},
		{Err: criu.ErrTimeout, Code: codes.DeadlineExceeded},
		{Err: criu.ErrRefused, Code: codes.FailedPrecondition},
		{Err: criu.ErrForbidden, Code: codes.PermissionDenied},
		{Err: criu.ErrDiffers, Code: codes.FailedPrecondition},
		{Err: criu.ErrUnsupported, Code: codes.FailedPrecondition},
		{Err: criu.ErrImages, Code: codes.InvalidArgument},
		{Err: checkpoint.ErrUnfit, Code: codes.FailedPrecondition},
		{Err: checkpoint.ErrUntrusted, Code: codes.PermissionDenied},
		{Err: checkpoint.ErrOccupied, Code: codes.FailedPrecondition},
		{Err: checkpoint.ErrTooLarge, Code: codes.ResourceExhausted},
		{Err: checkpoint.ErrInvalid, Code: codes.InvalidArgument},
		{Err: hook.ErrInvalid, Code: codes.FailedPrecondition},
		{Err: hook.ErrFailed, Code: codes.FailedPrecondition},
	}
}
