// Package link makes the interfaces, addresses and routes of crisp's network, over
// netlink: pairs of virtual interfaces (veth), on a bridge or routed point to point,
// and their bandwidth limits.
//
// A pod's end of the pair is created inside its namespace under its final name. The
// host's end is named by a hash of the attachment, so that it is found without any
// record. Sockets are opened in a namespace and then used from anywhere; only
// sysctls need a thread that is inside it.
//
// To delete an interface the kernel waits for tens of milliseconds, in which it does
// nothing that a pod could notice. [Host.Retire] therefore only makes the interface
// useless (down, so without routes and neighbours) and puts it into a group that
// [Host.Reap] deletes, with one wait for all of them. The group is the kernel's, so
// that no crash loses it.
package link
