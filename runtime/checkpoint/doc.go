// Package checkpoint writes, and reads, what a checkpoint of a container has besides the
// state of its processes: the changes to its image's files, and the archive that
// everything is in.
//
// The archive has the layout that Kubernetes' tools know:
//
//	checkpoint/       the state of the processes, as CRIU wrote it
//	config.dump       which container and image it is
//	spec.dump         its OCI runtime-spec
//	status            when it was created and started
//	rootfs-diff.tar   the files that it wrote
//	deleted.files     the image's files that it deleted, a list of paths
//	crisp.deleted     those of them that are no UTF-8, in base64
//	container.log     its log
//	dump.log          what CRIU did
//	stats-dump        how long that took
//	crisp.manifest    what all of these are, signed with the node's key
//
// The container is hostile and its files are read without following a link of
// its. It is frozen meanwhile.
//
// The same walk writes the changes as a layer of an image, of a container that may
// go on: see [Diff.WriteLayer].
//
// So is an archive that is to be restored, whoever has signed it: [Unpack] takes
// from it what is known, into a directory that others cannot enter, and
// [Unpacked.Apply] adds the files to a root in which nothing runs. What CRIU's
// images ask for is checked by package criu. A [Policy] says whose checkpoints are
// restored at all.
package checkpoint
