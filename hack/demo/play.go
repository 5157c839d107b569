package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"crisp/test/testkit/lab"
)

const (
	indent = "    "
	image  = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
)

// object is JSON to be written.
type object map[string]any

// stage is what the steps of the demo share.
type stage struct {
	ctx    context.Context
	dir    string
	crictl []string // the program and its first arguments
}

// play runs a web server in a pod.
func play(ctx context.Context, l *lab.Lab) error {
	s, err := newStage(ctx, l)
	if err != nil {
		return err
	}
	pod, container := "", ""
	for _, step := range []struct {
		title string
		do    func() error
	}{
		{"The image of a web server:", func() error { return s.do("pull", image) }},
		{"A pod: namespaces, cgroup, network.", func() (err error) { pod, err = s.get("runp", s.file("pod.json")); return err }},
		{"A container in it, created and started:", func() (err error) {
			container, err = s.get("create", pod, s.file("container.json"), s.file("pod.json"))
			return err
		}},
		{"", func() error { return s.do("start", container) }},
		{"The pod has an address, and serves:", func() error { return s.fetch(pod) }},
		{"What the container logged:", func() error { return s.say("logs", container) }},
		{"A command in it:", func() error { return s.say("exec", container, "ps") }},
		{"What it uses:", func() error { return s.say("stats", container) }},
		{"Both, as they are listed:", func() error { return s.say("ps", "--pod", pod) }},
		{"And gone:", func() error { return s.do("stop", container) }},
		{"", func() error { return s.do("rm", container) }},
		{"", func() error { return s.do("stopp", pod) }},
		{"", func() error { return s.do("rmp", pod) }},
		{"", func() error { return s.do("rmi", image) }},
	} {
		if step.title != "" {
			fmt.Printf("\n%s\n", step.title)
		}
		if err := step.do(); err != nil {
			return err
		}
	}
	return nil
}

// newStage writes what crictl reads.
func newStage(ctx context.Context, l *lab.Lab) (*stage, error) {
	cache, err := lab.Find()
	if err != nil {
		return nil, err
	}
	crictl, err := cache.Tool("crictl")
	if err != nil {
		return nil, err
	}
	s := &stage{ctx: ctx, dir: filepath.Join(l.Dir, "demo")}
	s.crictl = []string{crictl, "--config", s.file("crictl.yaml")}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	names := object{"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "demo", "io.kubernetes.container.name": "nginx"}
	const pidOfContainer = 1 // the CRI's NamespaceMode for a PID namespace of each container's own
	for name, content := range map[string]object{
		"crictl.yaml": {"runtime-endpoint": l.Endpoint, "image-endpoint": l.Endpoint, "timeout": 30},
		"pod.json": {
			"metadata":      object{"name": "web", "namespace": "demo", "uid": "demo-web", "attempt": 0},
			"hostname":      "web",
			"log_directory": s.file("logs"),
			"port_mappings": []object{{"container_port": 80, "host_port": 8080}},
			"labels":        names,
			"linux":         object{"security_context": object{"namespace_options": object{"pid": pidOfContainer}}},
		},
		"container.json": {
			"metadata": object{"name": "nginx"},
			"image":    object{"image": image},
			"log_path": "nginx.log",
			"labels":   names,
			"linux": object{
				"resources":        object{"memory_limit_in_bytes": 64 << 20},
				"security_context": object{"namespace_options": object{"pid": pidOfContainer}},
			},
		},
	} {
		data, err := json.MarshalIndent(content, "", "  ") // JSON is YAML too
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(s.file(name), data, 0o644); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *stage) file(name string) string { return filepath.Join(s.dir, name) }

// get runs crictl, prints how long it took and returns what it said.
func (s *stage) get(args ...string) (string, error) {
	cmd := exec.CommandContext(s.ctx, s.crictl[0], append(s.crictl[1:], args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	for i, arg := range args {
		args[i] = short(strings.TrimPrefix(arg, s.dir+"/"))
	}
	began := time.Now()
	err := cmd.Run()
	fmt.Printf("%s$ crictl %s%s\n", indent, strings.Join(args, " "), took(began))
	if err != nil {
		return "", fmt.Errorf("crictl %s: %w: %s", args[0], err, bytes.TrimSpace(errs.Bytes()))
	}
	return strings.TrimSpace(out.String()), nil
}

// say runs crictl and prints what it said.
func (s *stage) say(args ...string) error {
	out, err := s.get(args...)
	if err != nil {
		return err
	}
	const clearScreen = "\x1b[2J\x1b[H" // with which crictl stats begins
	for line := range strings.Lines(strings.TrimPrefix(out, clearScreen)) {
		fmt.Print(indent, line)
	}
	fmt.Println()
	return nil
}

// do runs crictl for its effect.
func (s *stage) do(args ...string) error {
	_, err := s.get(args...)
	return err
}

// fetch gets the pod's page at its own address and at the mapped port.
func (s *stage) fetch(pod string) error {
	address, err := s.get("inspectp", "--output", "go-template", "--template", "{{.status.network.ip}}", pod)
	if err != nil {
		return err
	}
	if address == "" {
		return errors.New("the pod has no address")
	}
	for _, url := range []string{"http://" + address + "/", "http://127.0.0.1:8080/"} {
		began := time.Now()
		page, err := s.page(url)
		if err != nil {
			return err
		}
		fmt.Printf("%s%s says: %s%s\n", indent, url, page, took(began))
	}
	return nil
}

// page asks until the server listens.
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

// short cuts long IDs as crictl does.
func short(s string) string {
	const id = 64
	if len(s) == id && strings.Trim(s, "0123456789abcdef") == "" {
		return s[:13]
	}
	return s
}

func took(began time.Time) string {
	return fmt.Sprintf("  [%d ms]", time.Since(began).Milliseconds())
}
