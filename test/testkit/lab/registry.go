package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"crisp/test/testkit/pace"
)

// hosts are the registries that the loopback one stands in for.
var hosts = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io", "docker.io", "quay.io"}

const registryConfig = `version: 0.1
log:
  level: error
  accesslog:
    disabled: %t
storage:
  filesystem:
    rootdirectory: %s
  maintenance:
    uploadpurging:
      enabled: false
    readonly:
      enabled: %t
http:
  addr: %s
`

// Registry is a running registry on loopback.
type Registry struct {
	// Addr is its host and port.
	Addr string
	stop func() error
}

// RegistryOptions configure a registry.
type RegistryOptions struct {
	Binary    string // the distribution project's registry
	Storage   string // directory with the blobs
	Work      string // directory for its configuration and log
	Writable  bool
	AccessLog bool // log each request in registry.log
}

// StartRegistry runs a registry on a free port and waits until it responds.
func StartRegistry(ctx context.Context, o RegistryOptions) (*Registry, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}

	config := filepath.Join(o.Work, "registry.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, !o.AccessLog, o.Storage, !o.Writable, addr), 0o644); err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}

	proc, err := StartProcess(filepath.Join(o.Work, "registry.log"), []string{"OTEL_TRACES_EXPORTER=none"}, o.Binary, "serve", config)
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}

	r := &Registry{Addr: addr, stop: proc.Stop}
	if err := proc.WaitUntil(ctx, pace.Scale(20*time.Second), func() bool { return answers("http://" + addr + "/v2/") }); err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("start registry: %w", err)
	}
	return r, nil
}

// Close stops the registry.
func (r *Registry) Close() error { return r.stop() }

// WriteHosts writes certs.d directories to dir that send the pulls from the usual
// registries to this one.
func (r *Registry) WriteHosts(dir string) error {
	for _, host := range hosts {
		file := filepath.Join(dir, host, "hosts.toml")
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		content := fmt.Sprintf("server = \"https://%s\"\n\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", host, r.Addr)
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func answers(url string) bool {
	client := http.Client{Timeout: pace.Scale(time.Second)}
	resp, err := client.Get(url)
	if err != nil {
		return false
	}
	defer client.CloseIdleConnections()
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
