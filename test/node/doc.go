// Package node runs what people run on Kubernetes, on Kubernetes itself with
// crisp as the node's runtime, and looks at it as they do: with kubectl.
//
// Its tests have the build tag "node", as they need the programs of
// Kubernetes, which take minutes to build: "make node" does both. The cluster
// is that of package cluster.
package node
