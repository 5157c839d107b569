package pod

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/pod/stdio"
)

// Attach connects a client to a running container's standard streams until the
// container exits, the client disconnects, or ctx ends, whose cause is the
// error then. Earlier output is not replayed. A client that reads too slowly
// does not block the container: the output is buffered, up to a limit, beyond
// which the session ends with ErrSlow. A client may miss some output when the
// keeper dies.
func (m *Manager) Attach(ctx context.Context, id string, st stdio.Streams) error {
	p, id, err := m.container(id)
	if err != nil {
		return err
	}

	c, pr := p.record().Container(id), p.process(id)
	if c == nil || pr == nil || c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("attach to container %s: it is not running: %w", id, ErrState)
	}
	if st.Stdin != nil && pr.stdin == nil {
		return fmt.Errorf("attach to container %s: its standard input is not open: %w", id, ErrState)
	}

	to := stdio.Container{
		ID: c.ID, Keeper: m.Keeper, TTY: c.Config.Msg.GetTty(), Once: c.Config.Msg.GetStdinOnce(),
		Stdin: pr.stdin, Terminal: pr.row.Terminal(), Exited: pr.exited,
	}
	if err := to.Attach(ctx, m.ctx, st); err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	return nil
}
