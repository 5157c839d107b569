// Package rootpath opens and creates files below a directory with untrusted
// content: a container's root file system, a layer, a volume. It is the only
// package that may pass such a path to the kernel.
//
// Every lookup is an openat2 relative to the descriptor of the root. Symbolic
// links, also absolute ones, are resolved as if the root were "/", ".." stops
// at the root, and magic links of procfs are refused, so a name leads to a file
// inside the root or to an error, regardless of concurrent renames. Results are
// descriptors, never paths, because a path that was safe a moment ago may not
// be safe now.
package rootpath
