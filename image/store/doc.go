// Package store keeps blobs and the record of images on disk, as an OCI image
// layout that other tools can read:
//
//	oci-layout          the layout's version
//	index.json          the images, for other tools; derived from images.json
//	images.json         images, their names and digests: the record as synced
//	images.recent.json  the record as of the last change, if that is not synced yet
//	blobs/ALGORITHM/HEX manifests, configurations, compressed layers
//	parts/ALGORITHM-HEX partial downloads of blobs
//	tmp/                everything else that is being written; swept at start
//
// A blob gets its name once its digest and size are verified, so whichever
// process dies, a name implies correct content. No writer waits for the disk:
// until the owner has synced the file system and says so in the record, an image
// is marked with the boot in which it was written. After a power cut its blobs
// are doubtful: they do not count until they have been read and verified.
//
// # Partial downloads
//
// A layer is downloaded into a part, which becomes the blob by a rename. What an
// interrupted download leaves, from 1 MiB on, is where the next one continues. A
// part is not trusted: its end may be torn, and any host may have sent its bytes.
// They are hashed together with the rest; if the digest does not match, the part
// is removed. Parts expire a day after they last grew; the oldest are removed when
// all of them exceed a quarter of the space that would be free without them, or
// 64 GiB; and all are removed when space is needed.
package store
