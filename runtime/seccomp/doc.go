// Package seccomp turns the seccomp profiles of the OCI runtime-spec into
// programs for the kernel, without libseccomp.
//
// A program looks at the ABI of a call first, finds the call's number by
// binary search over ranges that are decided alike, and compares arguments
// where the profile asks for it. Where a profile leaves room the answer is
// that of runc with libseccomp:
//
//   - Of the rules for one call, one without conditions beats all others;
//     the rest are tried in the order of the profile.
//   - The conditions of a rule must all hold, unless two of them are about
//     the same argument: then each stands for itself.
//   - Calls of ABIs that the profile does not list kill the thread.
//   - Calls that are newer than all that the profile names are ENOSYS, so
//     that programs try an older one, unless the default is to allow.
//
// Names that are no system call are ignored: profiles are written for many
// kernels and machines.
package seccomp

//go:generate go run crisp/hack/syscalltable -out table.go
