// Package stdio moves the standard streams of processes between these and
// clients: those of a command that is executed in a container, from its start
// to its end, and those of a container that a client attaches to for a while.
//
// The streams of a command are the daemon's alone. It has the other ends of the
// command's pipes, or its terminal, and the keeper may die meanwhile. The output
// of a container is the keeper's, which writes the log; it copies what comes to
// further pipes for each attached client, and the next keeper is asked to do the
// same when it has died.
//
// A client may be slow, hang, or be gone. None of that holds up a container, and
// nothing waits for the input of a client, which may never come.
package stdio
