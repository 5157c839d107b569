package pods

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Logged is the container's output so far, without the log's fields.
func (c *Container) Logged(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(c.LogFile())
	if err != nil {
		t.Fatal(err)
	}

	var text strings.Builder
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(line, " ", 4)
		if len(f) < 4 {
			continue // the last line is being written
		}
		if f[2] == "P" {
			f[3] = strings.TrimSuffix(f[3], "\n")
		}
		text.WriteString(f[3])
	}

	return text.String()
}

// Await waits for a word in the container's log.
func (c *Container) Await(t testing.TB, word string) {
	t.Helper()
	Eventually(t, word+" is in the log of "+c.Config.Metadata.Name, func() bool { return strings.Contains(c.Logged(t), word) })
}

// PID is the container's first process in the node's PID namespace.
func (c *Container) PID(t testing.TB) int {
	t.Helper()
	r := Call(t, c.Pod.Node.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil || info.Pid == 0 {
		t.Fatalf("the status of container %s has no process: %v", c.ID, err)
	}
	return info.Pid
}
