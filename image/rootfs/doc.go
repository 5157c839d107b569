// Package rootfs makes root file systems for containers out of image layers:
// overlays that exist as descriptors only, so that no mount of them ever shows
// on the host, and the directories that hold what containers write.
//
//	containers/ID/layers   a link whose text is the chain ID of the image
//	containers/ID/held-N   further images in use, by chain ID
//	containers/ID/upper    what the container writes
//	containers/ID/work     overlayfs's own
//
// The links are the record of which layers are in use. Making one is atomic
// and takes one system call, and it names nothing that could be followed.
package rootfs
