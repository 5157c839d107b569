package spec

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// argumentRefusals are containers that the kernel would not execute.
func argumentRefusals() []refusal {
	stack := func(in *Input, soft uint64) {
		in.Defaults.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_STACK", Soft: soft, Hard: soft}}
	}
	variables := func(n, size int) []string {
		env := make([]string, n)
		for i := range env {
			env[i] = fmt.Sprintf("V%d=%s", i, strings.Repeat("x", size))
		}
		return env
	}

	return []refusal{
		{"long variable", func(in *Input) { in.Image.Env = []string{"A=" + strings.Repeat("x", maxString-2)} }, ErrInvalid, "131072 bytes"},
		{"long argument", func(in *Input) { in.Config.Args = []string{strings.Repeat("x", maxString)} }, ErrInvalid, "131072 bytes"},
		{"long variable of the configuration", func(in *Input) {
			in.Config.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte(strings.Repeat("x", maxString))}}
		}, ErrInvalid, "the kernel accepts at most 131071"},
		{"environment beyond what the kernel takes at all", func(in *Input) {
			in.Image.Env = variables(60, 110_000)
		}, ErrInvalid, "with this stack limit"},
		{"environment beyond a quarter of the stack", func(in *Input) {
			stack(in, 8<<20)
			in.Image.Env = variables(20, 110_000)
		}, ErrInvalid, "with this stack limit"},
		{"environment beyond a quarter of the host's stack", func(in *Input) {
			in.Host.StackLimit = 8 << 20
			in.Image.Env = variables(20, 110_000)
		}, ErrInvalid, "with this stack limit"},
		{"600,000 variables", func(in *Input) { in.Image.Env = variables(600_000, 0) }, ErrInvalid, "at most 131072"},
		{"pointers count", func(in *Input) { stack(in, 1<<20); in.Image.Env = variables(30_000, 0) }, ErrInvalid, "with this stack limit"},
		{"directories of PATH", func(in *Input) {
			in.Config.Command = []string{"app"}
			in.Image.Env = []string{"PATH=" + strings.Repeat("/x:", maxDirectories)}
		}, ErrInvalid, "1025 directories"},
		{"directories of PATH times the environment", func(in *Input) {
			in.Config.Command = []string{"app"}
			in.Image.Env = append(variables(40, 100_000), "PATH="+strings.Repeat("/x:", 99))
		}, ErrInvalid, "give the path"},
		{"long working directory", func(in *Input) { in.Image.WorkingDir = strings.Repeat("/x", 2048) }, ErrInvalid, "working directory"},
	}
}

// TestAccepts has a row for each large configuration that works all the same.
func TestAccepts(t *testing.T) {
	for name, change := range map[string]func(*Input){
		"longest variable": func(in *Input) { in.Image.Env = []string{"A=" + strings.Repeat("x", maxString-3)} },
		"many directories in PATH": func(in *Input) {
			in.Config.Command = []string{"app"}
			in.Image.Env = []string{"PATH=" + strings.Repeat("/x:", maxDirectories-1)}
		},
		"many services": func(in *Input) {
			in.Host.StackLimit = 8 << 20
			for i := range 20_000 {
				in.Config.Envs = append(in.Config.Envs, &runtimeapi.KeyValue{Key: fmt.Sprintf("SERVICE_%d_PORT_80_TCP_ADDR", i), Value: []byte("10.96.255.255")})
			}
		},
		"small stack": func(in *Input) {
			in.Defaults.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_STACK", Soft: 16 << 10, Hard: 16 << 10}}
			in.Image.Env = []string{"A=" + strings.Repeat("x", 100_000)}
		},
	} {
		in := testInput()
		change(&in)
		if _, err := Container(in); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestKernelAgrees executes a program with as much as is accepted, and with
// what the kernel refuses.
func TestKernelAgrees(t *testing.T) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_STACK, &l); err != nil {
		t.Fatal(err)
	}

	h := Host{StackLimit: l.Cur}
	process := func(size int) *specs.Process {
		p := &specs.Process{Args: []string{"/bin/true"}}
		for rest := size - len(p.Args[0]) - 1 - pointer; rest > 0; {
			n := min(rest, maxString)
			p.Env = append(p.Env, "A="+strings.Repeat("x", max(n-1-pointer-2, 0)))
			rest -= n
		}
		return p
	}

	run := func(p *specs.Process) error {
		cmd := exec.Command(p.Args[0])
		cmd.Env = nil
		for i, kv := range p.Env { // distinct names, or they would be merged
			cmd.Env = append(cmd.Env, string(rune('B'+i))+kv[1:])
		}
		return cmd.Run()
	}

	most := 0
	for step := 1 << 23; step > 0; step /= 2 {
		if CheckArguments(process(most+step), h) == nil {
			most += step
		}
	}

	if err := run(process(most)); err != nil {
		t.Errorf("%d bytes are accepted, and the kernel says %v", most, err)
	}
	if err := run(process(most + 2*nameReserve)); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("%d bytes are refused, and the kernel says %v", most+2*nameReserve, err)
	}
}

func TestCostCoversStrings(t *testing.T) {
	image := ocispec.ImageConfig{Env: []string{strings.Repeat("e", 1000)}, Cmd: []string{strings.Repeat("c", 1000)}}
	cfg := &runtimeapi.ContainerConfig{Envs: []*runtimeapi.KeyValue{{Key: "k", Value: make([]byte, 1000)}}}
	if n := Cost(cfg, image) - Cost(&runtimeapi.ContainerConfig{}, ocispec.ImageConfig{}); n < 3*6*1000 {
		t.Errorf("3000 bytes cost %d", n)
	}
}

// TestArgumentsOfCommands: a command for a running container is held to what
// its own process was.
func TestArgumentsOfCommands(t *testing.T) {
	for name, p := range map[string]*specs.Process{
		"none":           {},
		"empty":          {Args: []string{""}},
		"NUL":            {Args: []string{"ls", "a\x00b"}},
		"NUL in program": {Args: []string{"l\x00s"}},
	} {
		if err := CheckArguments(p, Host{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got error %v, want %v", name, err, ErrInvalid)
		}
	}
}
