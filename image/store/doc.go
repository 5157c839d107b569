// Package store keeps blobs and the record of images on disk, as an OCI image
// layout that other tools can read:
//
//	oci-layout          the layout's version
//	index.json          what is here, for other tools; derived from images.json
//	images.json         images, their names and digests: the record as it is on disk
//	images.recent.json  the same as of the last change, if that is not on disk yet
//	blobs/ALGORITHM/HEX manifests, configurations, compressed layers
//	tmp/                what is being written; swept at start
//
// A blob gets its name once its digest and size are verified, so a name stands
// for good content whichever process dies. Nobody waits for the disk: until
// the owner has had the file system synced and says so in the record, an image
// carries the boot it was written in. After a power cut its blobs are doubtful,
// which a look at their content settles.
package store
