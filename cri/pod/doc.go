// Package pod manages pods and containers: it turns requests of the CRI into
// namespaces, cgroups, root file systems and processes.
//
// # Shape
//
// A [Manager] owns all pods of a node. A pod is one immutable [Record] behind
// an atomic pointer, plus the descriptors that keep it alive. Readers load the
// pointer and never wait. Writers encode the next record, put it on disk and
// swap the pointer, so memory never runs ahead of the disk.
//
// # Operations
//
// An operation with more than one effect is a table of steps with a do and an
// undo (sandboxSteps, containerSteps). The phase reached is recorded before a
// step runs. Rollback after an error, removal, and recovery after a crash walk
// the same table backwards, see [unwind].
//
// An operation outlives the call that began it: the caller waits for the
// operation or for its own context, whichever ends first, and a retry with the
// same metadata joins the running operation.
//
// # States
//
//	sandbox     (phases of sandboxSteps) ──▶ READY ──stop──▶ NOTREADY ──remove──▶ gone
//	container   (phases of containerSteps) ──▶ CREATED ──start──▶ RUNNING ──exit──▶ EXITED ──remove──▶ gone
//	                                              └──────start fails──────────────────▲
//
// A container's state is derived from its times ([Container.State]); there is
// no second field that could disagree with them.
package pod
