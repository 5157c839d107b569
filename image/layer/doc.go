// Package layer unpacks image layers and keeps them, each in a directory of its
// own that holds the difference to the layers below in overlayfs's form:
//
//	layers/CHAINID/fs          the tree
//	layers/CHAINID/layer.json  what it is; written before the layer appears
//	layers/CHAINID/targets     for the top of an image: see [Store.Targets]
//
// A layer is known by its chain ID, the digest of its own content and that of
// all layers below it, so images share what they have in common. Its directory
// appears complete, by one rename. Until its bytes are known to have reached the
// disk its record names the boot that it was written in, and in another boot it
// is not trusted.
//
// Unpacking a layer takes at most 20 MiB of memory: about 5 MiB of buffers, the
// window of zstd, and the names of directories until their times are set. One
// that needs more, up to 140 MiB, is only unpacked with [Limits.Much].
//
// The archive is hostile. Every name in it is resolved inside the layer's
// directory by package rootpath and every file is made new there, so no entry,
// link or order of entries reaches anything outside; device numbers, owners
// and sizes are checked; attributes that mean something to overlayfs are dropped.
package layer
