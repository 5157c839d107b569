// Package spec turns the CRI configuration of a container into an OCI
// runtime-spec.
//
// [Container] is a pure function: the same [Input] gives the same [Result] on
// every machine. What it has to know about the node is passed in as facts
// ([Host]) or through the small interface [Node], which tests replace.
//
// Two kinds of input meet here. The CRI configuration is kubelet's policy; it
// is followed or rejected, never adjusted: an unknown capability, sysctl or
// mount option, or a missing host path, is an error that wraps [ErrInvalid].
// The image configuration is hostile: it determines the command, environment,
// user, working directory, volumes and stop signal of the container, each of
// which is checked, and nothing else. Image labels are never read.
//
// Arguments and environment are limited to what the kernel would execute, see
// [CheckArguments], so that a container beyond that is rejected when it is
// created.
//
// In the resulting spec root.path is nominal. Namespaces that the container
// joins have as their path the name under which the caller holds the descriptor
// ("ns/net", "ns/pid"), and so do image volumes ("image/0") and the pod's
// shared memory (type "shm"); package plan resolves these names.
package spec
