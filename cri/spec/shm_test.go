package spec

import (
	"errors"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestShmSize(t *testing.T) {
	const refused = -1
	for _, c := range []struct {
		own, crio string
		want      int64
	}{
		{"", "", 0},
		{"4096", "", 4096},
		{"128Mi", "", 128 << 20},
		{"1.5Gi", "", 3 << 29},
		{"16Ti", "", 1 << 44},
		{"1Gi", "64m", 1 << 30},
		{"", "67108864", 64 << 20},
		{"", "64m", 64 << 20},
		{"", "64M", 64 << 20},
		{"", "64MB", 64 << 20},
		{"", "64MiB", 64 << 20},
		{"", "1g", 1 << 30},
		{"", "1.5 GB", 3 << 29},
		{"", "8192b", 8192},
		{"0", "", refused},
		{"1", "", refused},
		{"4095", "", refused},
		{"17Ti", "", refused},
		{"99999999999999999999999Ti", "", refused},
		{"-64Mi", "", refused},
		{"64m", "", refused},
		{"64M", "", refused},
		{"1e9", "", refused},
		{"NaN", "", refused},
		{"Inf", "", refused},
		{"0x10000", "", refused},
		{"64Mi ", "", refused},
		{"64 Mi\n", "", refused},
		{" ", "", refused},
		{"Mi", "", refused},
		{"64MiMi", "", refused},
		{"size=1", "", refused},
		{"", "0", refused},
		{"", "x", refused},
		{"", "64mm", refused},
		{"", "64p", refused},
		{"", "inf", refused},
	} {
		cfg := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}, Annotations: map[string]string{}}
		if c.own != "" {
			cfg.Annotations["crisp.runtime/shm-size"] = c.own
		}
		if c.crio != "" {
			cfg.Annotations["io.kubernetes.cri-o.ShmSize"] = c.crio
		}

		o, err := SandboxOptions(cfg)
		switch {
		case c.want == refused && !errors.Is(err, ErrInvalid):
			t.Errorf("%q, %q: got %d, %v, want %v", c.own, c.crio, o.ShmSize, err, ErrInvalid)
		case c.want != refused && (err != nil || o.ShmSize != c.want):
			t.Errorf("%q, %q: got %d, %v, want %d", c.own, c.crio, o.ShmSize, err, c.want)
		}
	}
}

// TestShmSizeOfTheNode has pods with the node's IPC: there is nothing to size.
func TestShmSizeOfTheNode(t *testing.T) {
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}, Annotations: map[string]string{crioShmSize: "1g"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE},
		}},
	}
	if o, err := SandboxOptions(cfg); err != nil || o.ShmSize != 0 {
		t.Errorf("got %d, %v, want it left alone as CRI-O does", o.ShmSize, err)
	}
	cfg.Annotations[ShmSizeAnnotation] = "1Gi"
	if o, err := SandboxOptions(cfg); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %d, %v, want %v", o.ShmSize, err, ErrInvalid)
	}
}
