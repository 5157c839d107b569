// Package image pulls, keeps and mounts container images.
//
// A [Service] is the image half of a node: it fetches images from registries
// (package registry), keeps their blobs in an OCI layout (package store) and
// their unpacked layers beside it (package layer), and stacks these into root
// file systems (package rootfs). What is on disk is accounted for when it is
// written, so sizes cost nothing to ask for.
//
// Readers work on an immutable snapshot and never wait. A pull goes on as long
// as anybody waits for it, and what two pulls have in common, the image, a
// layer or a blob, is fetched once.
//
// An interrupted pull, by whatever ends it, leaves the beginnings of layers to
// the next one (package store), which asks for the rest, of any host and for any
// image with that layer. The beginning is hashed and unpacked once more. One
// that is wrong costs a second download, of the whole layer, and no more. Layers
// that it has whole stay as they are, until there is no room for so much, or the
// service ends: then their blobs are such beginnings, too.
//
// Nothing waits for the disk: what was written names the boot of the machine
// until a sync, and is not trusted in another one. [Service.Check] finds what
// a disk has changed at rest.
//
// Everything that comes out of an image is hostile and bounded: documents by
// size and by the number of values in them, archives by what they unpack to and
// by what an entry may say of itself, names by the directory that they are resolved
// in. What pulls take of the memory together is the affair of package budget,
// and of a configuration no more is kept than 256 KiB that containers need. No
// value of an image decides anything on the host.
package image
