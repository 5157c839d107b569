// Package audit writes lines for each command that is run in a container on request,
// each attachment and each connection to a port of a pod: who, where, what, with which
// result, for how long.
//
// A call has a line when it begins, so that whoever can end the daemon leaves a trace
// before that, and another when it has ended. One line of both would need a file for
// each call under way, which is more to write, and which no one collects from the node.
//
// The lines are JSON objects in a file of their own, which is root's alone: commands
// may hold secrets, so they are in no other log. Nobody waits for the disk. A line
// that cannot be written is lost, and counted.
package audit
