// Package cri serves the Kubernetes Container Runtime Interface, version 1, of
// k8s.io/cri-api 0.37.
//
// A handler validates, calls the package that does the work, and converts what
// comes back; it holds no state. Pods and containers are package pod's, images
// package image's, sessions package stream's, figures package stats'. Errors
// leave with the code that [Rules] gives to the sentinel they wrap.
package cri
