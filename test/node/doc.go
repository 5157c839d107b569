// Package node runs typical workloads on Kubernetes with crisp as the node's
// runtime, and checks them as users do: with kubectl.
//
// Its tests have the build tag "node", as they need the programs of
// Kubernetes, which take minutes to build: "make node" does both. The cluster
// is that of package cluster.
package node
