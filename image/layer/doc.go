// Package layer unpacks image layers and keeps them, each in a directory of its
// own that holds the difference to the layers below in the format of overlayfs:
//
//	layers/CHAINID/fs          the tree
//	layers/CHAINID/layer.json  its record, written before the layer appears
//	layers/CHAINID/targets     for the top layer of an image: see [Store.Targets]
//
// A layer is identified by its chain ID, a digest over its own content and that
// of all layers below it, so images share the layers that they have in common.
// Its directory appears complete, by one rename. Until a layer is synced, its
// record names the boot in which it was written; in another boot the layer is not
// trusted.
//
// A [Stage] is a layer in the making: it is unpacked, completed with the
// attributes of the layers below, and published.
//
// Unpacking a layer takes at most 20 MiB of memory: about 5 MiB of buffers, the
// zstd window, and the names of directories until their times are set. A layer
// that needs more, up to 140 MiB, is only unpacked with [Limits.LargeMemory].
//
// The archive is hostile. Every name in it is resolved inside the layer's
// directory by package rootpath, and every file is created anew there, so that no
// entry, link or order of entries reaches anything outside. Device numbers,
// owners and sizes are checked; extended attributes that overlayfs interprets are
// dropped.
package layer
