package testkit

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// Strict reports whether skips are failures and leaks are checked on the whole
// machine (CRISP_STRICT=1).
func Strict() bool { return os.Getenv("CRISP_STRICT") == "1" }

// Root skips the test if it does not run as root, and in short mode: with
// -short, tests change nothing on the machine.
func Root(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("short: the test changes namespaces, mounts or cgroups")
	}
	if os.Geteuid() != 0 {
		Skip(t, "root", "the test changes namespaces, mounts or cgroups")
	}
}

// Skip skips the test because the machine lacks feature. If skips are not
// allowed ([Strict]) it fails the test, unless a check confirms that the
// machine lacks the feature, or CRISP_LACKS, a comma-separated list, contains
// it.
func Skip(t testing.TB, feature, reason string) {
	t.Helper()
	if Strict() && !lacks(feature) && !slices.Contains(strings.Split(os.Getenv("CRISP_LACKS"), ","), feature) {
		t.Fatalf("%s is missing, and skips are failures here (add it to CRISP_LACKS if this machine cannot have it): %s", feature, reason)
	}
	t.Skipf("%s is missing: %s", feature, reason)
}

// lacks reports whether the machine is known not to have a feature.
func lacks(feature string) bool {
	switch feature {
	case "apparmor":
		return missing("/sys/kernel/security/apparmor")
	case "selinux":
		return missing("/sys/fs/selinux/enforce")
	case "systemd":
		return missing("/run/systemd/system")
	case "cgroup2": // with controllers, not next to version 1
		return missing("/sys/fs/cgroup/cgroup.controllers")
	case "cgroup1":
		return !missing("/sys/fs/cgroup/cgroup.controllers")
	case "vm": // a machine that tests may change freely
		return os.Getenv("CRISP_VM") == ""
	case "amd64":
		return runtime.GOARCH != "amd64"
	case "dbus":
		return missing("/usr/bin/dbus-daemon")
	case "block devices":
		entries, _ := os.ReadDir("/sys/dev/block")
		return len(entries) == 0
	}
	return false
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}
