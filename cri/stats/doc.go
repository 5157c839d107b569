// Package stats answers the statistics and metrics calls of CRI from a
// snapshot of what runs ([Source]).
//
// Figures are read when they are asked for, with two exceptions. Processor
// use as a rate needs two readings, so the last one of each container and pod is kept.
// The size of a writable layer takes a walk through it, which
// [Collector.Run] does in the background; a container that was never walked
// is walked when it is first seen, and the asker waits for that a short while at most.
//
// Whatever cannot be read of one container is left out and keeps nobody
// else's figures back.
package stats
