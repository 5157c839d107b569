// Package testkit is shared by crisp's tests: the gate for tests that need root
// ([Root]), skips that can be made failures ([Skip]), the check for leaks
// ([Leaks]), and a private daemon ([Daemon]).
//
// With CRISP_STRICT=1 in the environment a skip is a failure, and the leak
// check covers the whole machine instead of the test's own resources: set it
// where nothing else runs.
package testkit
