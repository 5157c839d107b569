// Package lab sets up a node to try crisp on: a registry with the test
// images, a network, a daemon with directories and a socket of its own, and
// everything gone at the end. The demo, the conformance run and the tests of
// package testkit work in it.
//
// The tools and images it needs are made by "make tools images" and found in
// the checkout's .cache directory ([Find]).
package lab
