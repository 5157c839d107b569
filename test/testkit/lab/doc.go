// Package lab sets up a node to test crisp on: a registry with the test images,
// a network, a daemon with directories and a socket of its own; everything is
// removed at the end. The demo, the conformance run and the tests of package
// testkit use it. The tools and images it needs are built by "make tools
// images" and found in the checkout's .cache directory ([Find]).
package lab
