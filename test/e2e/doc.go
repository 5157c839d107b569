// Package e2e tests the programs as a node runs them: bin/crisp with its
// keeper, real CNI plugins, images from a registry, and a CRI client on the
// socket. What a container has and may is read from inside it.
//
// Every test looks at its end for what it left: mounts, pinned namespaces,
// cgroups, processes, descriptors of the daemon and the keeper, leased
// addresses, directories, and what the keeper holds.
package e2e
