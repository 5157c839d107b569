// Package store keeps blobs and the record of images on disk, as an OCI image
// layout that other tools can read:
//
//	oci-layout          the layout's version
//	index.json          what is here, for other tools; derived from images.json
//	images.json         images, their names and digests: the record as it is on disk
//	images.recent.json  the same as of the last change, if that is not on disk yet
//	blobs/ALGORITHM/HEX manifests, configurations, compressed layers
//	parts/ALGORITHM-HEX beginnings of blobs that are, or were, downloaded
//	tmp/                what else is being written; swept at start
//
// A blob gets its name once its digest and size are verified, so a name stands
// for good content whichever process dies. Nobody waits for the disk: until
// the owner has had the file system synced and says so in the record, an image
// carries the boot it was written in. After a power cut its blobs are doubtful,
// which a look at their content settles.
//
// A layer is downloaded into a part, which becomes the blob by a rename. What an
// interrupted download leaves, from 1 MiB on, is where the next one begins. A
// part is nothing to rely on: its end may be torn, and its bytes are whoever's
// that sent them. They go through the hash with the rest, and a part of a blob
// that turns out to be another is removed. Parts go a day after they last
// grew, the oldest as soon as all take more than a quarter of the room that there
// would be without them, or 64 GiB, and all of them if room is wanted.
package store
