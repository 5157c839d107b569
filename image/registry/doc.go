// Package registry reads images from registries that speak the OCI
// distribution protocol or its ancestor, the Docker Registry HTTP API V2.
//
// A [Client] turns a [Reference] into a [Repository]: the ordered list of
// hosts that may serve it, from the hosts.toml files of the registry
// configuration directories, which are read anew each time. Every request walks
// that list; an error names each host that was tried and what it answered.
//
// A host that refuses, breaks off, stalls or sends something else than was
// asked for is left for the next one, in the middle of a blob if need be; the
// last one is asked again for what may pass. Only the bytes of a tag are taken
// on trust: all else is named by its digest.
//
// What is here already of a blob is not asked for. An answer with a part of a
// blob has to say that it is the one asked for, of a blob of the right size; if
// no host gives such an answer, the whole is asked for.
//
// Credentials go to the registry that the reference names and to nothing
// else: not to a mirror, not to the target of a redirect, not to an address
// that a manifest mentions. A host that a redirect leads to may ask for a token
// of its own, which it gets without them.
//
// A registry is hostile. It may lead clients to other hosts, private ones too,
// but not to addresses that only mean something on this machine or its link,
// unless it is on this machine itself. An answer begins within two minutes; a
// document then arrives within one, and a blob at 1 KiB a second at least.
package registry
