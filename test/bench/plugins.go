package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"crisp/network"
	"crisp/test/testkit/lab"
)

// plugins is the part of a pod's start and stop that no runtime can avoid: the CNI
// plugins attach a network namespace and detach it.
type plugins struct {
	name    string // of the samples
	network *network.Network
}

// newPlugins returns the network of a lab, without the lab's runtime.
func newPlugins(l *lab.Lab, name string) (*plugins, error) {
	cache, err := lab.Find()
	if err != nil {
		return nil, err
	}
	bin, err := cache.Plugins()
	if err != nil {
		return nil, err
	}
	n, err := network.Open(network.Options{
		ConfDir: filepath.Join(l.Dir, "net.d"), BinDirs: []string{bin}, CacheDir: filepath.Join(l.Dir, "bench-cni"), Own: true,
	})
	return &plugins{name, n}, err
}

// attach measures ADD for a new namespace. detach undoes it and measures DEL.
func (p *plugins) attach(ctx context.Context, record func(string, time.Duration)) (detach func() error, err error) {
	// It ends with its input, and so with this process. A signal at the parent's
	// death would come when the thread exits that started it.
	holder := exec.Command("cat")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if _, err := holder.StdinPipe(); err != nil {
		return nil, err
	}
	if err := holder.Start(); err != nil {
		return nil, err
	}

	a := network.Attachment{
		ID: fmt.Sprintf("floor-%d", holder.Process.Pid), NetNS: fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid),
		Name: "floor", Namespace: "bench", UID: "floor",
	}

	detach = func() error {
		began := time.Now()
		err := p.network.Detach(context.WithoutCancel(ctx), a)
		record("CNI DEL", time.Since(began))
		_ = holder.Process.Kill()
		_ = holder.Wait() // it was killed
		return err
	}

	began := time.Now()
	if _, err := p.network.Attach(ctx, a); err != nil {
		return nil, errors.Join(err, detach())
	}
	record("CNI ADD", time.Since(began))
	return detach, nil
}
