// Package cluster runs a Kubernetes cluster in one test: etcd, the API server,
// the controller manager and the scheduler, and nodes, each of which is a
// daemon of crisp with a kubelet and a kube-proxy.
//
// Everything lives in the network namespace that package testkit gives the
// test, in one temporary directory, and in cgroups below one of its own: nothing
// of the machine's is changed, and several runs can go on side by side. The
// programs are made by "make kubernetes". Where systemd does not run, stand-ins
// play its part for programs that ask for it.
package cluster
