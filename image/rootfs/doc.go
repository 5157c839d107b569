// Package rootfs makes root file systems for containers from image layers. An
// [Overlay] is a detached mount, held by a descriptor only, so that it never
// appears in the host's mount namespace. [Containers] keeps the directories that
// containers write to:
//
//	containers/ID/layers   a symbolic link whose text is the image's chain ID
//	containers/ID/held-N   further images in use, by chain ID
//	containers/ID/upper    what the container writes
//	containers/ID/work     overlayfs's work directory
//
// The links record which layers are in use. Creating one is atomic and takes a
// single system call, and they point to nothing that could be followed.
package rootfs
