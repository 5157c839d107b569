// Package stats serves the stats and metrics calls of the CRI from a snapshot
// of the running pods ([Source]).
//
// Stats are read on request, with two exceptions. CPU usage as a rate needs two
// readings, so the last one of each container and pod is kept. The size of a
// writable layer requires walking it, which [Collector.Run] does in the
// background; a container that was never walked is walked when it is first
// seen, and the caller waits for that only briefly.
//
// Stats of one container that cannot be read are omitted, and do not affect
// those of others.
package stats
