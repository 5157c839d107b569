package admin

import (
	"slices"
	"strings"
	"time"

	"crisp/cri/pod"
	"crisp/image"
	"crisp/network/cni"
	"crisp/runtime/untrusted"
)

// Pod is what the daemon knows of a pod.
type Pod struct {
	Name       string      `json:"name"` // NAMESPACE/NAME
	ID         string      `json:"id"`
	Phase      string      `json:"phase"`
	Ready      bool        `json:"ready"`
	Reason     string      `json:"reason,omitempty"`
	CreatedAt  time.Time   `json:"createdAt"`
	IPs        []string    `json:"ips,omitempty"`
	NetNS      string      `json:"netns,omitempty"`
	Containers []Container `json:"containers"`
}

// Container is what the daemon knows of a container.
type Container struct {
	Name        string    `json:"name"`
	ID          string    `json:"id"`
	Attempt     uint32    `json:"attempt"`
	Phase       string    `json:"phase"`
	State       string    `json:"state"`
	PID         int       `json:"pid,omitempty"`
	CreatedAt   time.Time `json:"createdAt"`
	StartedAt   time.Time `json:"startedAt,omitzero"`
	FinishedAt  time.Time `json:"finishedAt,omitzero"`
	ExitCode    int32     `json:"exitCode"`
	Reason      string    `json:"reason,omitempty"`
	Message     string    `json:"message,omitempty"`
	Cgroup      string    `json:"cgroup"`
	Image       string    `json:"image"`
	MemoryLimit int64     `json:"memoryLimit,omitempty"`
	LogPath     string    `json:"logPath,omitempty"`
}

func podOf(r *pod.Record) Pod {
	p := Pod{
		Name: r.Name(), ID: r.ID, Phase: r.Phase, Ready: r.Ready(), Reason: r.Reason, CreatedAt: at(r.CreatedAt), IPs: r.IPs, NetNS: r.NetNS,
		Containers: []Container{},
	}

	for _, c := range r.Containers {
		st := c.Status()
		k := Container{
			Name: st.GetMetadata().GetName(), ID: c.ID, Attempt: st.GetMetadata().GetAttempt(), Phase: c.Phase, State: c.StateName(),
			CreatedAt: at(c.CreatedAt), StartedAt: at(c.StartedAt), FinishedAt: at(c.FinishedAt),
			ExitCode: c.ExitCode, Reason: c.Reason, Message: st.GetMessage(), Cgroup: c.CgroupPath, Image: c.ImageRef,
			MemoryLimit: st.GetResources().GetLinux().GetMemoryLimitInBytes(), LogPath: c.LogPath,
		}
		if c.Process != nil && c.FinishedAt == 0 {
			k.PID = c.Process.Pid
		}
		p.Containers = append(p.Containers, k)
	}
	return p
}

// at is a time in nanoseconds, zero for none.
func at(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}

// Waiting is an operation under way, with the processes that it may wait for:
// network plugins, and those that do not die.
type Waiting struct {
	pod.Operation
	Processes []Process `json:"processes,omitempty"`
	// Plugins are calls of network plugins, with what these have printed so far.
	Plugins []cni.Running `json:"plugins,omitempty"`
}

// Report is what the daemon knows of why a pod is as it is.
type Report struct {
	// Pod is nil if there is no record of it: it was never created, or is removed.
	Pod        *Pod        `json:"pod,omitempty"`
	Operations []Waiting   `json:"operations"`
	History    []pod.Event `json:"history"`
	// Network is why pods cannot be attached to the network now, "" if they can.
	Network string           `json:"network,omitempty"`
	Keeper  string           `json:"keeper,omitempty"`
	Pulls   []image.Progress `json:"pulls"`
}

// Report reports on a pod by its name, or its ID if that is not empty.
func (s *Server) Report(name, id string) Report {
	out := Report{Operations: []Waiting{}, History: []pod.Event{}, Pulls: s.Images.Pulls()}
	m := s.pods.Load()
	if m == nil {
		return out
	}
	if err := m.Keeping(); err != nil {
		out.Keeper = err.Error()
	}
	if err := m.Network.Ready(); err != nil {
		out.Network = err.Error()
	}

	for _, r := range m.Sandboxes() { // the newest first
		if out.Pod == nil && (r.ID == id || id == "" && r.Name() == name) {
			p := podOf(r)
			out.Pod, name = &p, p.Name
		}
	}

	for _, op := range m.Operations() {
		if op.Pod == name && (id == "" || op.SandboxID == "" || op.SandboxID == id) {
			out.Operations = append(out.Operations, s.waiting(m, op))
		}
	}
	out.History = slices.DeleteFunc(m.History(), func(e pod.Event) bool {
		return e.Pod != name // an earlier attempt at it may say more
	})
	return out
}

// maxPrinted bounds what is told of a plugin's output, in bytes.
const maxPrinted = 4 << 10

// waiting finds the processes that an operation waits for.
func (s *Server) waiting(m *pod.Manager, op pod.Operation) Waiting {
	w := Waiting{Operation: op, Processes: pluginsOf(op.SandboxID)}
	if s.Plugins != nil && op.SandboxID != "" {
		for _, p := range s.Plugins(op.SandboxID) {
			p.Stdout, p.Stderr = untrusted.Of(p.Stdout).Message(maxPrinted), untrusted.Of(p.Stderr).Message(maxPrinted)
			w.Plugins = append(w.Plugins, p)
		}
	}
	if h := op.Hook; h != nil && h.PID != 0 {
		w.Processes = append(w.Processes, processes(append([]int{h.PID}, descendants(h.PID)...))...)
	}
	if !strings.HasPrefix(op.What, "stop") && !strings.HasPrefix(op.What, "remove") {
		return w
	}

	r, err := m.Sandbox(op.SandboxID)
	if err != nil {
		return w
	}
	for _, c := range r.Containers {
		if op.ContainerID == "" || c.ID == op.ContainerID {
			w.Processes = append(w.Processes, processes(m.Processes(c.ID))...)
		}
	}
	w.Processes = w.Processes[:min(len(w.Processes), maxProcesses)]
	return w
}
