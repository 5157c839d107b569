package launch

import (
	"context"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/spawn"
)

// mapping returns a user namespace that only provides ID mappings. The launcher
// owns it and caches it for mounts with the same mappings.
func (l *Launcher) mapping(ctx context.Context, uids, gids []specs.LinuxIDMapping) (*os.File, error) {
	key := fmt.Sprint(uids, gids)
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.userns[key]; f != nil {
		return f, nil
	}
	f, err := newUserNS(ctx, uids, gids)
	if err != nil {
		return nil, err
	}
	l.userns[key] = f
	return f, nil
}

// newUserNS creates a user namespace by a child that only waits until the
// namespace is opened here.
func newUserNS(ctx context.Context, uids, gids []specs.LinuxIDMapping) (*os.File, error) {
	p := &plan.Plan{
		Name:  "make user namespace",
		Clone: plan.Clone{Flags: unix.CLONE_NEWUSER, Cgroup: -1, UIDMap: uids, GIDMap: gids},
		Steps: []plan.Step{{Name: "wait", Call: unix.SYS_READ, Save: plan.NoReg, Args: []plan.Arg{
			{Kind: plan.ArgSync}, {Kind: plan.ArgBuf, Int: 1}, {Int: 1},
		}}},
	}

	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := spawn.Start(p, nil, spawn.Options{})
	if err != nil {
		return nil, err
	}
	defer func() {
		c.Abort()
		c.Close()
		// The child was killed; its status does not matter.
		_ = unix.Waitid(unix.P_PIDFD, c.PidFD, nil, unix.WEXITED, nil)
		unix.Close(c.PidFD)
	}()

	if err := c.WriteIDMaps(); err != nil {
		return nil, err
	}
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", c.Pid))
}
