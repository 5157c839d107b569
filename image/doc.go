// Package image pulls, keeps and mounts container images.
//
// A [Service] implements the image half of the CRI: it fetches images from
// registries (package registry), keeps their blobs in an OCI image layout
// (package store) and their unpacked layers next to it (package layer), and
// stacks the layers into root file systems (package rootfs). Disk usage is
// accounted for when data is written, so reporting it costs nothing.
//
// Readers work on an immutable snapshot, the catalog, and never block. A pull
// runs as long as at least one caller waits for it, and whatever two pulls have
// in common, an image, a layer or a blob, is fetched once.
//
// # Interrupted pulls
//
// A pull that is interrupted, for whatever reason, leaves partial downloads of
// layers to the next one (package store), which requests only the rest, from any
// host and for any image with that layer. The partial download is hashed and
// unpacked again; if it is corrupt, the layer is downloaded a second time, in
// full, and nothing else is affected. Layers that were completed stay unpacked
// until space runs short or the service ends; then their blobs become partial
// downloads too.
//
// # Durability
//
// No pull waits for the disk. What it writes is marked with the boot ID of the
// machine until it is synced, and is not trusted after another boot.
// [Service.Check] detects data that has been corrupted on disk.
//
// # Hostile images
//
// Everything that an image contains is hostile and bounded: documents by their
// size and by the number of values in them, archives by their unpacked size and
// by the headers of each entry, names by the directory that they are resolved
// in. Package budget bounds the memory that all pulls use together; at most
// 256 KiB of an image's configuration are kept. No value from an image decides
// anything on the host.
package image
