package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cri/admin"
	"crisp/cri/move"
	"crisp/runtime/ordinary"
)

const (
	// settleWait is between two attempts to find out what has become of a pod.
	settleWait = time.Second
	// maxSaid bounds what is kept of the standard error of the connection's program.
	maxSaid = 4 << 10
)

// migration is a call of crisp migrate.
type migration struct {
	*session
	pod, node, shell string
	query            url.Values
	patience         time.Duration
	verbose          bool
}

// migrateCommand is the command migrate.
func migrateCommand() *cobra.Command {
	m := migration{}
	limit, address, settle := time.Duration(0), false, false
	cmd := withDaemon(&cobra.Command{
		Use: "migrate [FLAGS] POD NODE", Short: "Move a running pod to another node",
		Long: `Move a running pod to another node, where crisp runs too: its memory, the files that its
containers have changed, and the images that the node lacks. It is removed here once it
runs there. It needs CRIU on both nodes, the volumes under the same paths, and this node's
key in restore_from of the other one (crisp checkpoint --key).

The nodes talk through ssh NODE crisp receive, or through another command, whose standard
input and output are the connection: --command 'ssh -l admin NODE sudo crisp receive'.

Memory is sent while the pod runs, and again what has changed, before the pod is frozen to
send the rest.

If the connection breaks while the pod is being handed over, it stays frozen until the
other node can be asked; the command tries for a while, and again when it is called again.
At no time does the pod run on both.`,
		Args: cli.Exactly(2, "a pod, and a node"),
	}, func(ctx context.Context, s *session, args []string) error {
		m.session, m.node = s, args[1]
		if m.shell == "" {
			m.shell = "ssh -- " + quote(m.node) + " crisp receive"
		}
		id, err := s.podID(ctx, args[0])
		if err != nil {
			return err
		}
		m.pod = args[0]
		m.query = url.Values{"pod": {id}, "node": {m.node}, "limit": {limit.String()}}
		if address {
			m.query.Set("address", "true")
		}
		return m.run(ctx, settle)
	})
	cmd.Flags().StringVar(&m.shell, "command", "", "what connects to crisp receive on the node: `COMMAND` of the shell (default: ssh NODE crisp receive)")
	cmd.Flags().DurationVarP(&limit, "timeout", "t", time.Minute, "how long the pod may be frozen: `DURATION`")
	cmd.Flags().DurationVar(&m.patience, "settle-timeout", time.Minute, "how long to try to find out what has become of the pod: `DURATION`")
	cmd.Flags().BoolVar(&address, "keep-address", false, "have the pod keep its addresses, which the other node's network must give it")
	cmd.Flags().BoolVarP(&m.verbose, "verbose", "v", false, "say how long the pod was frozen, and how much was sent before")
	cmd.Flags().BoolVar(&settle, "settle", false, "only settle what an earlier attempt has left")
	return cmd
}

// quote makes a word of the shell of a text.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// run moves the pod. After a failure in between it asks what has become of it.
func (m *migration) run(ctx context.Context, settle bool) error {
	r, err := m.attempt(ctx, settle)
	for end := time.Now().Add(m.patience); (err != nil || r.Unsettled) && ctx.Err() == nil; {
		first := err
		if err == nil {
			first = errors.New(r.Error)
		}
		if time.Now().After(end) {
			return first
		}
		fmt.Fprintf(os.Stderr, "%v; asking again\n", first)
		select {
		case <-time.After(settleWait):
		case <-ctx.Done():
			return first
		}
		r, err = m.attempt(ctx, true)
	}

	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		return err
	}
	if m.verbose && r.Frozen > 0 {
		fmt.Fprintf(os.Stderr, "frozen for %v; %s of memory were sent before\n", time.Duration(r.Frozen).Round(time.Millisecond), bytesOf(uint64(max(0, r.Ahead))))
	}
	_, err = fmt.Fprintln(m.out, r.ID)
	return err
}

// attempt is one conversation of the daemon with the other node.
func (m *migration) attempt(ctx context.Context, settle bool) (r move.Report, err error) {
	c := admin.NewClient(m.adminSocket())
	defer c.Close()
	query := url.Values{}
	for key, value := range m.query {
		query[key] = value
	}
	if settle {
		query.Set("settle", "true")
	}
	daemon, err := c.Converse(ctx, admin.MigratePath+"?"+query.Encode())
	if err != nil {
		return r, m.explain(err)
	}
	defer daemon.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	said := &tail{}
	cmd := exec.CommandContext(ctx, "sh", "-c", m.shell)
	cmd.Stderr, cmd.WaitDelay = said, settleWait
	in, ierr := cmd.StdinPipe()
	out, oerr := cmd.StdoutPipe()
	if err := errors.Join(ierr, oerr); err != nil {
		return r, err
	}
	if err := ordinary.Start(cmd); err != nil {
		return r, fmt.Errorf("connect to %s: %w", m.node, err)
	}

	answered := make(chan struct{})
	go func() {
		defer close(answered)
		_, _ = io.Copy(daemon, out) // the daemon finds out what is missing
		_ = daemon.CloseWrite()
	}()
	r, err = move.Relay(daemon, in)
	in.Close()
	select {
	case <-answered:
	case <-time.After(settleWait):
	}
	cancel()
	_ = cmd.Wait() // what went wrong the daemon knows
	<-answered
	if text := strings.ReplaceAll(strings.TrimSpace(said.String()), "\n", "; "); text != "" && (err != nil || r.Error != "") {
		text = "(the connection's program said: " + text + ")"
		if err != nil {
			return r, fmt.Errorf("%w %s", err, text)
		}
		r.Error += " " + text
	}
	return r, err
}

// tail keeps the end of what is written.
type tail struct{ bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	n, err := t.Buffer.Write(p)
	if over := t.Len() - maxSaid; over > 0 {
		t.Next(over)
	}
	return n, err
}

// receiveCommand is the command receive.
func receiveCommand() *cobra.Command {
	return withDaemon(&cobra.Command{
		Use: "receive", Short: "Take a pod that another node moves here, for crisp migrate",
		Long: `Take a pod that another node moves here. Standard input and output are the connection to
it; crisp migrate starts this command through ssh.`,
		Args: cli.Exactly(0, "no arguments"),
	}, func(ctx context.Context, s *session, _ []string) error {
		c := admin.NewClient(s.adminSocket())
		defer c.Close()
		daemon, err := c.Converse(ctx, admin.ReceivePath)
		if err != nil {
			return s.explain(err)
		}
		defer daemon.Close()

		go func() {
			_, _ = io.Copy(daemon, os.Stdin) // the daemon finds out what is missing
			_ = daemon.CloseWrite()
		}() // it ends with the program
		_, err = io.Copy(s.out, daemon)
		return err
	})
}
