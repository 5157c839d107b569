// Package rootpath opens and makes files below a directory whose contents
// belong to somebody else: a container's root file system, a layer, a volume.
// It is the only package that may hand such a path to the kernel.
//
// Every look-up is an openat2 relative to the descriptor of the root. Symbolic
// links, absolute ones too, are resolved as if the root were "/", ".." stops at
// the root, and magic links of procfs are refused, so a name leads to a file
// inside the root or to an error however fast somebody renames what lies on
// the way. Results are descriptors, never paths, because a path that was safe a
// moment ago need not be so now.
package rootpath
