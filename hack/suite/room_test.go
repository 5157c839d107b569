package main

import (
	"fmt"
	"os"
	"testing"
)

func TestElsewhere(t *testing.T) {
	for what, want := range map[string]bool{
		fmt.Sprintf("cgroup /sys/fs/cgroup/pids/crisp_lab_%d_001/pod", os.Getpid()): true,
		"cgroup /sys/fs/cgroup/pids/crisp_lab_0_001":                                false,
		"cgroup /sys/fs/cgroup/pids/crisp":                                          false,
		fmt.Sprintf("process %d crisp", os.Getpid()):                                false,
	} {
		if got := elsewhere(what); got != want {
			t.Errorf("%s: got %t, want %t", what, got, want)
		}
	}
}
