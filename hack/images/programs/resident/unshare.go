package main

import (
	"os/exec"
	"syscall"
)

// unshareInChild starts a child in a user namespace: a process with threads
// cannot enter one itself.
func unshareInChild() error {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	return cmd.Run()
}
