// Package cni runs chains of CNI plugins.
//
// Parsing, ADD, CHECK, STATUS and GC are libcni's. DEL is not: libcni stops at
// the first plugin of a chain that fails or is missing, and what the remaining
// ones hold, usually an address, leaks. [Client.Del] calls every plugin, with the
// configuration of the ADD, which [Client.Add] records before it runs the first
// plugin.
//
// Each [Load] reads the configuration anew. That takes microseconds, a plugin
// takes milliseconds, and no change can be missed, unlike with a watch on a
// directory that may be removed and made again, or be a symbolic link.
package cni
