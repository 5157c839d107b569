// Package cri serves the Kubernetes Container Runtime Interface, version 1, of
// k8s.io/cri-api 0.37.
//
// A handler validates the request, calls the package that does the work, and
// converts the result; it holds no state. Package pod owns pods and containers,
// package image images, package stream streaming sessions, and package stats
// statistics. A [Server] is filled in by cmd/crisp and registered with a gRPC
// server that has [ServerOptions], through which each error gets the code of
// the sentinel that it wraps.
package cri
