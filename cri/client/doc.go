// Package client is the side of the CRI on which a user sits: it finds the daemon,
// says in one sentence why it cannot, and resolves names that people use.
//
// A pod is NAMESPACE/NAME or, if no other one is called that, NAME; a container is
// NAMESPACE/POD/NAME, POD/NAME or, as the only one of its pod, what its pod is. The
// beginning of an ID does as well. Of pods and containers with the same name, the
// attempts at one, the newest is meant.
package client
