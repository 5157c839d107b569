// Package pages reads the memory of running processes, without stopping them, so that a node
// that a pod is moving to has most of it before the pod is frozen.
//
// What is read is a guess: a page may have changed before the next one was read. Only its
// content counts, never where it was: see package move, which sends of what is saved later
// only the blocks that the other node has not got.
//
// Reading memory may make the reader wait for whoever provides it, such as a FUSE file system
// or a handler of userfaultfd in the container. Only pages that are there are read, but they
// may go at that moment. So a process of its own reads, which can be killed: see [Apart].
package pages
