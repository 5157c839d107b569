// Package launch starts processes: it turns a pod's or container's
// configuration into a plan, opens what the plan needs and has a keeper run it.
//
// All that a container is given from the host passes through here as a
// descriptor: bind mounts are cloned with their options and id mappings set
// before the container exists, mount targets are made inside its root by
// package rootpath, and files in /proc are reached through a procfs that is
// mounted nowhere.
package launch
