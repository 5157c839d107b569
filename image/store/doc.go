// Package store keeps blobs and the record of images on disk, as an OCI image
// layout that other tools can read:
//
//	oci-layout          the layout's version
//	index.json          what is here, for other tools; derived from images.json
//	images.json         images, their names and digests: the record that counts
//	blobs/ALGORITHM/HEX manifests, configurations, compressed layers
//	tmp/                what is being written; swept at start
//
// A blob gets its name once its digest and size are verified and its bytes
// have reached the disk, so a name stands for good content after any crash.
package store
