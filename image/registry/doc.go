// Package registry reads images from registries that speak the OCI
// distribution protocol or its ancestor, the Docker Registry HTTP API V2, and
// writes them.
//
// A [Client] turns a [Reference] into a [Repository]: the ordered list of
// hosts that may serve it, from the hosts.toml files of the registry
// configuration directories, which are read anew for each pull. Every request
// walks that list; an error names each host that was tried and its response.
//
// If a host refuses, disconnects, stalls or sends something else than was
// requested, the next one is tried, in the middle of a blob if need be; the last
// one is retried after transient errors. Only the digest of a tag is taken on
// trust: everything else is verified.
//
// Bytes of a blob that are present locally are not requested again. A partial
// response must state that it is the requested range, of a blob of the right
// size; if no host sends such a response, the whole blob is requested.
//
// A [Pusher] writes to one host: the registry itself, or the first one whose
// hosts.toml gives it the capability to push. A mirror without that gets nothing.
// A blob is one request after that which begins the upload, is read as it is sent,
// and is sent again, from its beginning, after transient errors. Upload in parts is
// what the protocol calls optional, and what registries differ in.
//
// # Security
//
// Credentials are sent to the registry that the reference names and to no other
// host: not to a mirror, not to the target of a redirect, not to an address in a
// manifest. The target of a redirect may require a token of its own, which is
// requested without credentials.
//
// Where an upload goes is the registry's choice, and bound like a redirect: without
// credentials if it is another host, and by HTTPS if the registry is asked by that.
//
// A registry is hostile. It may redirect clients to other hosts, also in private
// networks, but not to addresses that are only meaningful on this machine or its
// link, unless it is on this machine itself. A response must begin within two
// minutes; a document must then arrive within one minute, and a blob at 1 KiB/s
// or faster. It must take an upload at that rate, and answer within the time-out of
// downloads once it has all of it.
package registry
