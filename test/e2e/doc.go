// Package e2e tests the programs as a node runs them: bin/crisp with its
// keeper, real CNI plugins, images from a registry, and a CRI client on the
// socket. Resources and privileges of a container are read inside it. Every
// test checks at its end for leaks: mounts, pinned namespaces, cgroups,
// processes, descriptors of the daemon and the keeper, leased addresses,
// directories, and what the keeper holds.
package e2e
