// Package testkit is what crisp's tests share: the gate for tests that need
// root ([Root]), skips that cannot hide ([Skip]), the check that a test left
// nothing behind ([Leaks]), and a daemon of one's own to talk to ([Daemon]).
//
// With CRISP_STRICT=1 in the environment a skip is a failure, and the leak
// check looks at the whole machine instead of the test's own corner of it:
// set it where nothing else runs.
package testkit
