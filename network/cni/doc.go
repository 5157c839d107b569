// Package cni runs chains of CNI plugins.
//
// Parsing, ADD, CHECK, STATUS and GC are libcni's. DEL is not: libcni ends a
// chain at the first plugin that fails or is missing, and what the others
// hold, an address as a rule, is then lost for good. [Client.Del] asks every
// plugin, and does so with the configuration that the ADD ran with, which
// [Client.Add] notes down before it starts.
//
// Configuration is read anew by each [Load]. That costs microseconds beside
// the milliseconds of a plugin, and no change can be missed: directories that are
// removed and made again, files renamed into place, links switched over.
package cni
