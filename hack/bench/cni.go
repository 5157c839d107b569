package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"

	"crisp/network"
	"crisp/test/testkit/lab"
)

// floor measures the part of a pod's start and stop that is the CNI plugins':
// attaching a namespace to the lab's network and detaching it.
func (b *bencher) floor(ctx context.Context) (err error) {
	cache, err := lab.Find()
	if err != nil {
		return err
	}
	plugins, err := cache.Plugins()
	if err != nil {
		return err
	}
	n, err := network.Open(ctx, network.Options{
		ConfDir: filepath.Join(b.lab.Dir, "net.d"), BinDirs: []string{plugins}, CacheDir: filepath.Join(b.lab.Dir, "bench-cni"),
	})
	if err != nil {
		return err
	}
	defer n.Close()
	holder := exec.Command("sleep", "60")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := holder.Start(); err != nil {
		return err
	}
	defer func() {
		_ = holder.Process.Kill()
		_ = holder.Wait() // it was killed
	}()
	a := network.Attachment{
		ID: fmt.Sprintf("floor-%d", holder.Process.Pid), NetNS: fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid),
		Name: "floor", Namespace: "bench", UID: "floor",
	}
	add := b.timed("CNI ADD alone", func() error {
		_, err := n.Attach(ctx, a)
		return err
	})
	return errors.Join(add, b.timed("CNI DEL alone", func() error { return n.Detach(context.WithoutCancel(ctx), a) }))
}
