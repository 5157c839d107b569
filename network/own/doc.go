// Package own is crisp's own network: the CNI plugin type [Type].
//
// It does in one process, which may be the daemon, what chains of bridge (or ptp),
// host-local, portmap, bandwidth and tuning do with iptables and a process for each:
//
//	lease  addresses, in host-local's format
//	link   pairs of interfaces, bridges, routes, bandwidth
//	rules  masquerading, host ports and isolation, by nftables
//
// [Plugin.Call] answers every verb of the CNI specification, versions 0.3.1 to 1.1.0.
// ADD makes what a pod needs in the order lease, link, rules, and undoes it if a step
// fails. DEL goes the other way round, so that an address is given back only when no
// rule and no route leads to it any more; each of its steps finds what it needs
// without a record, and does nothing if that is gone. A process that is killed at any
// point therefore leaves nothing that DEL, or GC, does not remove.
package own

// Type is the name of the plugin type in configurations.
const Type = "crisp-net"
