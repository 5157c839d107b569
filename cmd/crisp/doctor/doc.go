// Package doctor examines a node: what the kernel, the configuration and the disk
// have for pods, and what is left of pods that no longer exist.
//
// A check is a row of a table, and returns findings: each OK, WARN or FAIL, with what
// to do. A leftover is one only if it is provably crisp's, by its name and place, and
// the daemon, asked twice, does not know its owner; without a daemon nothing can be
// judged so, and the next one cleans up when it starts. Only such findings can be
// fixed.
package doctor
