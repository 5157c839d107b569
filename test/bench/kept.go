package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/cgroup"
	"crisp/runtime/host"
	keeperclient "crisp/runtime/keeper/client"
	"crisp/runtime/launch"
	"crisp/runtime/plan"
)

// kept starts containers as the daemon does: from a running process, with a running
// keeper.
type kept struct {
	keeper  *keeperclient.Client
	l       *launch.Launcher
	cgroups *cgroup.Node
	spec    *specs.Spec
}

func newKept(ctx context.Context, state, binary, bundle string) (*kept, error) {
	config, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}

	k := &kept{}
	if k.spec, err = plan.ReadOCI(config, bundle); err != nil {
		return nil, err
	}
	if k.cgroups, err = cgroup.New(cgroup.Cgroupfs, filepath.Dir(k.spec.Linux.CgroupsPath)); err != nil {
		return nil, err
	}
	if err := os.Mkdir(state, 0o700); err != nil {
		return nil, err
	}

	if k.keeper, err = keeperclient.Connect(ctx, state, binary); err != nil {
		return nil, err
	}
	k.l = launch.New(k.keeper, host.Probe())
	return k, nil
}

func (k *kept) end(ctx context.Context) error {
	return errors.Join(k.l.Close(), k.keeper.End(ctx), k.cgroups.Close())
}

// run runs the bundle's container, including the creation of its cgroup.
func (k *kept) run(ctx context.Context) (err error) {
	group, err := k.cgroups.Create(ctx, k.spec.Linux.CgroupsPath, k.spec.Linux.Resources)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, group.Kill(ctx), group.Remove(ctx)) }()

	started, err := k.l.Container(ctx, launch.Request{
		ID: "bundle", Name: "start bundle", Spec: k.spec, Group: group, Hierarchies: k.cgroups.Hierarchies(),
	})
	if err != nil {
		return err
	}
	defer started.Close()

	select {
	case exit := <-k.keeper.Events():
		if exit.Code != 0 {
			return fmt.Errorf("exit code %d", exit.Code)
		}
	case <-ctx.Done():
		return ctx.Err()
	}

	return k.keeper.Forget(ctx, "bundle")
}
