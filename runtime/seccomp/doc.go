// Package seccomp compiles the seccomp profiles of the OCI runtime-spec into
// BPF programs, without libseccomp.
//
// A program checks the ABI of a call first, finds the call's number by binary
// search over ranges with the same decision, and compares arguments where the
// profile has conditions. Where a profile is ambiguous the result is that of
// runc with libseccomp:
//
//   - Of the rules for one call, one without conditions overrides all others;
//     the rest apply in the order of the profile.
//   - The conditions of a rule must all hold, unless two of them are about
//     the same argument: then each is a separate rule.
//   - Calls of ABIs that the profile does not list kill the thread.
//   - Calls newer than all that the profile names return ENOSYS, so
//     that programs fall back, unless the default is to allow.
//
// Unknown system call names are ignored: profiles are written for many kernels
// and machines.
package seccomp

//go:generate go run crisp/hack/syscalltable -out table.go
