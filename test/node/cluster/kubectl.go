package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Command is a kubectl with the cluster administrator's credentials.
func (c *Cluster) Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	binary, err := c.cache.Kubernetes("kubectl")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, append([]string{"--kubeconfig=" + c.config}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECACHEDIR="+c.path("kubectl-cache"), "HOME="+c.Dir)
	return cmd, nil
}

// Kubectl runs kubectl and returns its stdout. Its stderr is in the error.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd, err := c.Command(ctx, args...)
	if err != nil {
		return "", err
	}
	var out, complaint bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.String(), nil
}
