// Package spec turns what kubelet asks of a container into an OCI
// runtime-spec.
//
// [Container] is pure: the same [Input] gives the same [Result] on every
// machine. What it must know about the node comes in as facts ([Host]) or
// through the small [Node] interface, which tests replace.
//
// Two kinds of value meet here. The CRI configuration is kubelet's policy and
// is obeyed or refused, never bent: an unknown capability, sysctl, mount option
// or a missing host path is an error that wraps [ErrInvalid]. The image
// configuration is hostile: it chooses the command, environment, user, working
// directory, volumes and stop signal of the container, each of which is checked,
// and nothing else. Image labels are never read.
//
// Arguments and environment are bounded by what the kernel would execute, see
// [CheckArguments], so that too many are refused when a container is created.
//
// In the spec, root.path is nominal and the namespaces that a container joins
// carry the name under which the caller holds them ("ns/net", "ns/pid"), as do
// image volumes ("image/0") and the pod's shared memory (type "shm").
package spec
