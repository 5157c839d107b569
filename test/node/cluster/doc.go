// Package cluster runs a Kubernetes cluster in one test: etcd, the API server,
// the controller manager and the scheduler, and nodes, each of which is a
// daemon of crisp with a kubelet and a kube-proxy.
//
// Everything lives in the network namespace that package testkit gives the
// test, in one temporary directory, and in cgroups below one of its own:
// nothing of the machine's is changed, and several runs can run concurrently.
// The programs are built by "make kubernetes". If systemd does not run,
// stand-ins replace it for programs that need it.
package cluster
