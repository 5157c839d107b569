package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

const (
	indent  = "    "
	image   = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
	logFile = "nginx.log"
)

// stage is the state shared by the steps of the demo.
type stage struct {
	ctx            context.Context
	lab            *lab.Lab
	logs           string // directory
	pod, container string // IDs
	sandbox        *runtimeapi.PodSandboxConfig
}

// step is one call of the CRI, or a check of its effect. The title is printed
// above it.
type step struct {
	title string
	do    func() error
}

// play runs a web server in a pod.
func play(ctx context.Context, l *lab.Lab) error {
	s := &stage{ctx: ctx, lab: l, logs: filepath.Join(l.Dir, "logs")}
	s.sandbox = s.sandboxConfig()
	for _, step := range slices.Concat(s.rise(), s.commands(), s.fall()) {
		if step.title != "" {
			fmt.Printf("\n%s\n", step.title)
		}
		if err := step.do(); err != nil {
			return err
		}
	}
	return nil
}

// rise are the steps until the pod serves, and checks of it.
func (s *stage) rise() []step {
	return []step{
		{"The image of a web server:", func() error {
			_, err := call(s, s.lab.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}, "PullImage", image)
			return err
		}},
		{"A pod: namespaces, cgroup, network.", func() error {
			r, err := call(s, s.lab.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: s.sandbox}, "RunPodSandbox", "web")
			s.pod = r.GetPodSandboxId()
			return err
		}},
		{"A container in it, created and started:", func() error {
			req := &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod, Config: s.containerConfig(), SandboxConfig: s.sandbox}
			r, err := call(s, s.lab.Runtime.CreateContainer, req, "CreateContainer", "nginx")
			s.container = r.GetContainerId()
			return err
		}},
		{"", func() error {
			_, err := call(s, s.lab.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: s.container}, "StartContainer", s.container)
			return err
		}},

		{"The pod has an address, and serves:", s.fetch},
		{"The container's log:", s.showLog},
		{"A command in it:", s.exec},
		{"Its stats:", s.stats},
		{"In the list of containers:", s.list},
	}
}

// fall are the steps until nothing is left.
func (s *stage) fall() []step {
	return []step{
		{"Stop and removal:", func() error {
			_, err := call(s, s.lab.Runtime.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: s.container, Timeout: 10}, "StopContainer", s.container)
			return err
		}},
		{"", func() error {
			_, err := call(s, s.lab.Runtime.RemoveContainer, &runtimeapi.RemoveContainerRequest{ContainerId: s.container}, "RemoveContainer", s.container)
			return err
		}},
		{"", func() error {
			_, err := call(s, s.lab.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.pod}, "StopPodSandbox", s.pod)
			return err
		}},
		{"", func() error {
			_, err := call(s, s.lab.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.pod}, "RemovePodSandbox", s.pod)
			return err
		}},
		{"", func() error {
			_, err := call(s, s.lab.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}, "RemoveImage", image)
			return err
		}},
	}
}

func labels() map[string]string {
	return map[string]string{"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "demo", "io.kubernetes.container.name": "nginx"}
}

func (s *stage) sandboxConfig() *runtimeapi.PodSandboxConfig {
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "demo", Uid: "demo-web"},
		Hostname:     "web",
		LogDirectory: s.logs,
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080}},
		Labels:       labels(),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces}},
	}
}

func (s *stage) containerConfig() *runtimeapi.ContainerConfig {
	const memory = 64 << 20 // bytes
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "nginx"},
		Image:    &runtimeapi.ImageSpec{Image: image},
		LogPath:  logFile,
		Labels:   labels(),
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: memory},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: s.sandbox.Linux.SecurityContext.NamespaceOptions,
			},
		},
	}
}

// call makes one call of the CRI and prints how long it took.
func call[Q, R any](s *stage, method func(context.Context, Q, ...grpc.CallOption) (R, error), req Q, words ...string) (R, error) {
	const limit = 30 * time.Second
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	began := time.Now()
	r, err := method(ctx, req)
	for i, word := range words {
		words[i] = short(word)
	}
	fmt.Printf("%s%s%s\n", indent, strings.Join(words, " "), took(began))
	if err != nil {
		return r, fmt.Errorf("%s: %w", words[0], err)
	}
	return r, nil
}

// say prints the result of a call.
func say(format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Print(indent, indent, line)
	}
	fmt.Println()
}

// showLog prints the file that kubelet reads.
func (s *stage) showLog() error {
	text, err := os.ReadFile(filepath.Join(s.logs, logFile))
	if err != nil {
		return err
	}
	say("%s", strings.TrimSpace(string(text)))
	return nil
}

func (s *stage) exec() error {
	r, err := call(s, s.lab.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: s.container, Cmd: []string{"ps"}, Timeout: 10}, "ExecSync", s.container, "ps")
	if err != nil {
		return err
	}
	say("%s", strings.TrimSpace(string(r.Stdout)))
	if r.ExitCode != 0 {
		return fmt.Errorf("ps exited with code %d: %s", r.ExitCode, r.Stderr)
	}
	return nil
}

func (s *stage) stats() error {
	r, err := call(s, s.lab.Runtime.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: s.container}, "ContainerStats", s.container)
	if err != nil {
		return err
	}
	cpu := time.Duration(r.GetStats().GetCpu().GetUsageCoreNanoSeconds().GetValue())
	memory, layer := r.GetStats().GetMemory().GetWorkingSetBytes().GetValue(), r.GetStats().GetWritableLayer().GetUsedBytes().GetValue()
	say("CPU time %v, working set %d KiB, writable layer %d KiB", cpu.Round(time.Millisecond), memory>>10, layer>>10)
	return nil
}

func (s *stage) list() error {
	filter := &runtimeapi.ContainerFilter{PodSandboxId: s.pod}
	r, err := call(s, s.lab.Runtime.ListContainers, &runtimeapi.ListContainersRequest{Filter: filter}, "ListContainers", "of", s.pod)
	if err != nil {
		return err
	}
	for _, c := range r.Containers {
		say("%s %s %s, of %s", short(c.Id), c.Metadata.Name, strings.TrimPrefix(c.State.String(), "CONTAINER_"), c.Image.GetImage())
	}
	return nil
}

// fetch gets the pod's page at its own address and at the mapped port.
func (s *stage) fetch() error {
	r, err := call(s, s.lab.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.pod}, "PodSandboxStatus", s.pod)
	if err != nil {
		return err
	}

	address := r.GetStatus().GetNetwork().GetIp()
	if address == "" {
		return errors.New("the pod has no address")
	}

	for _, url := range []string{"http://" + address + "/", "http://127.0.0.1:8080/"} {
		began := time.Now()
		page, err := s.page(url)
		if err != nil {
			return err
		}
		fmt.Printf("%s%s responds: %s%s\n", indent, url, page, took(began))
	}

	return nil
}

// page retries until the server listens.
func (s *stage) page(url string) (string, error) {
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return "", err
		}

		resp, err := client.Do(req)
		if err == nil {
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close() // it was read
			return strings.TrimSpace(string(body)), err
		}

		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// short cuts long IDs.
func short(s string) string {
	const id = 64
	if len(s) == id && strings.Trim(s, "0123456789abcdef") == "" {
		return s[:13]
	}
	return s
}

func took(began time.Time) string {
	d := time.Since(began)
	if d < 10*time.Millisecond {
		return fmt.Sprintf("  [%.1f ms]", d.Seconds()*1000)
	}
	return fmt.Sprintf("  [%d ms]", d.Milliseconds())
}
