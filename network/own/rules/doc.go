// Package rules keeps the packet filter's part of crisp's network: host ports,
// masquerading and isolation, by nftables over netlink.
//
// All of it is in one table of its own, "inet crisp-net", and nothing else is
// changed. The number of rules depends on the number of networks and not on that
// of pods: a host port is an element of a map, which a packet looks up by a hash.
//
//	prerouting, output  to an address of the node → hostports
//	hostports           DNAT by the maps addr4, addr6 (for one address of the
//	                    node) and ports4, ports6 (for all of them)
//	postrouting         masquerades what came from 127.0.0.1, a pod that uses its
//	                    own host port, and by network: see below
//	net-HASH            of one network: masquerades its pods' way out, and between
//	                    pods on a bridge, whose answers would go past the node
//	forward             drops connections between isolated pods
//	guard               drops what comes from the wire and claims to be from or
//	                    for 127.0.0.0/8: host ports on 127.0.0.1 need the kernel's
//	                    own check of that to be off (route_localnet)
//
// An element names its pod in a comment. It is only replaced or removed by the pod
// itself, or when that has no interface any more.
package rules
