package spec

import (
	"errors"
	"math"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSets(t *testing.T) {
	for list, good := range map[string]bool{
		"": true, "0": true, "0-3": true, "0-3,8,10-11": true, "7\n": true, "65535": true,
		" ": false, "0,": false, ",": false, "3-1": false, "a": false, "-1": false, "0-": false, "4294967296": false, "65536": false,
		"0 1": false, strings.Repeat("0,", 3000) + "0": false,
	} {
		for what, r := range map[string]*runtimeapi.LinuxContainerResources{"cpus": {CpusetCpus: list}, "mems": {CpusetMems: list}} {
			err := CheckPodResources(r)
			if good != (err == nil) || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("%s %.40q: %v", what, list, err)
			}
		}
	}
}

func TestPorts(t *testing.T) {
	for _, c := range []struct {
		host, container int32
		good            bool
	}{
		{0, 80, true}, {8080, 80, true}, {65535, 65535, true},
		{-1, 80, false}, {65536, 80, false}, {8080, 0, false}, {0, 0, false}, {0, -1, false}, {0, 65536, false}, {math.MinInt32, math.MaxInt32, false},
	} {
		cfg := &runtimeapi.PodSandboxConfig{
			Metadata:     &runtimeapi.PodSandboxMetadata{Name: "n", Namespace: "n", Uid: "u"},
			PortMappings: []*runtimeapi.PortMapping{{HostPort: c.host, ContainerPort: c.container}},
		}
		err := ValidateSandbox(cfg)
		if c.good != (err == nil) || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%d to %d: %v", c.host, c.container, err)
		}
	}
}

// TestMergedMemory changes the limit of a container that was granted 100 bytes of swap.
func TestMergedMemory(t *testing.T) {
	old := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1000, MemorySwapLimitInBytes: 1100}
	for limit, swap := range map[int64]int64{2000: 2100, -1: -1, math.MaxInt64: math.MaxInt64, math.MaxInt64 - 100: math.MaxInt64, 0: 1100} {
		got := MergeResources(old, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: limit})
		if got.MemorySwapLimitInBytes != swap {
			t.Errorf("with a limit of %d the limit with swap is %d, want %d", limit, got.MemorySwapLimitInBytes, swap)
		}
		if err := CheckPodResources(got); err != nil {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}
