// Package stdio copies standard streams between processes and clients: those of
// a command that is executed in a container, from its start to its exit, and
// those of a container that a client attaches to. Only the daemon has the
// streams of a command. It holds the other ends of the command's pipes, or its
// terminal, so the keeper may die meanwhile. The keeper reads the output of a
// container and writes the log; it copies new output to separate pipes for each
// attached client, and if it dies, the next keeper is asked to do the same. A
// client may be slow, hang, or disconnect. None of that blocks a container, and
// nothing waits for the input of a client, which may never come.
package stdio
