// Package network connects pods to the node's network.
//
// [Network.Attach] and [Network.Detach] run the chain of CNI plugins that the
// node is configured with (package cni). A pod's namespace is kept and
// entered by package netns, and connections into it are made by package
// portforward.
//
// The calls for one pod must not overlap; those for different pods may.
package network
