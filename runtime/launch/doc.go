// Package launch starts processes: it turns a pod's or container's
// configuration into a plan, opens the plan's inputs and has a keeper run it.
//
// Everything that a container gets from the host passes through here as a
// descriptor: bind mounts are cloned with their options and ID mappings set
// before the container exists, mount targets are created inside its root by
// package rootpath, and files in /proc are accessed through a detached procfs.
package launch
