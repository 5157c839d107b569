// Package hook describes the hooks of a container: programs of the node that
// run at points of the container's life, in the order of the OCI runtime-spec.
//
//	kind             runs                              in namespaces of   as
//	prestart         before the root is entered        the runtime        root
//	createRuntime    likewise, after those             the runtime        root
//	createContainer  likewise, after those             the container      its root
//	startContainer   as the last before the program    the container      the program's user
//	poststart        when the program runs             the runtime        root
//	poststop         when it has exited                the runtime        root
//
// A hook has nothing of its container or image but what its definition gives
// it: no environment, no descriptor, no working directory. Definitions come
// from the administrator of the node, never from an image or a pod, and carry
// their source for errors and logs.
//
// A hook finds the container by its state on standard input, whose bundle is a
// directory with a config.json; see [Container].
package hook
