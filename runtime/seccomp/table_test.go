package seccomp

import (
	"slices"
	"strings"
	"testing"
)

func TestTableIsSorted(t *testing.T) {
	if !slices.IsSortedFunc(calls[:], func(a, b call) int { return strings.Compare(a.name, b.name) }) {
		t.Error("the table is not in the order of names, which look-ups rely on")
	}
}

// Known numbers, one for each way in which a column is generated.
func TestTable(t *testing.T) {
	for _, tt := range []struct {
		a    abi
		name string
		want int
	}{
		{amd64, "read", 0}, {amd64, "execve", 59}, {amd64, "openat2", 437}, {amd64, "rt_sigaction", 13},
		{x32, "read", 0}, {x32, "execve", 520}, {x32, "rt_sigaction", 512}, {x32, "openat2", 437},
		{x32, "uselib", -1}, {amd64, "uselib", 134},
		{i386, "read", 3}, {i386, "socketcall", 102}, {i386, "socket", 359}, {i386, "clock_gettime64", 403}, {i386, "_llseek", 140},
		{arm64, "openat", 56}, {arm64, "open", -1}, {arm64, "newfstatat", 79}, {arm64, "execve", 221},
		{arm, "open", 5}, {arm, "set_tls", 0xf0005}, {arm, "arm_fadvise64_64", 270}, {arm, "sync_file_range2", 341},
		{amd64, "syscall_mask", -1}, {amd64, "nonsense", -1},
	} {
		got := -1
		if nr, ok := tt.a.number(tt.name); ok {
			got = int(nr)
		}
		if got != tt.want {
			t.Errorf("%s of %s: %d, want %d", tt.name, tt.a.arch, got, tt.want)
		}
	}
}
