// Package network connects pods to the node's network.
//
// [Network.Attach] and [Network.Detach] run the chain of CNI plugins in the
// node's network configuration (package cni). Package netns pins and enters a
// pod's network namespace, and package portforward makes connections into it.
//
// An attachment is recorded before its first plugin runs, so that it can be
// undone after a crash, with the configuration that it was made with:
// [Network.Sweep] detaches what no pod owns any more.
//
// Calls for the same pod must not overlap; calls for different pods may.
package network
