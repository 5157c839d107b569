// Package audit writes a line for each command that is run in a container on request,
// each attachment and each connection to a port of a pod: who, where, what, with which
// result, for how long.
//
// The lines are JSON objects in a file of their own, which is root's alone: commands
// may hold secrets, so they are in no other log. Nobody waits for the disk. A line
// that cannot be written is lost, and counted.
package audit
