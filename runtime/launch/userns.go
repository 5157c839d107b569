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

// mapping returns a user namespace that exists for its id mappings alone. It
// is the launcher's and kept for the next mount with the same mappings.
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

// newUserNS makes a user namespace through a child that does nothing but
// wait until the namespace is open here.
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
		// The child was killed; its status says nothing.
		_ = unix.Waitid(unix.P_PIDFD, c.PidFD, nil, unix.WEXITED, nil)
		unix.Close(c.PidFD)
	}()

	if err := c.WriteIDMaps(); err != nil {
		return nil, err
	}
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", c.Pid))
}
