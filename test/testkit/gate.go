package testkit

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
	if version, ok := strings.CutPrefix(feature, "linux "); ok {
		return older(version)
	}

	if kind, ok := strings.CutPrefix(feature, interfaceType); ok {
		return errors.Is(makeInterface(kind), unix.EOPNOTSUPP)
	}

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
	case "CAP_SYS_RESOURCE":
		return !capable(unix.CAP_SYS_RESOURCE)
	case "block devices":
		entries, _ := os.ReadDir("/sys/dev/block")
		return len(entries) == 0
	}
	return false
}

// capable reports whether this process has a capability, by its number.
func capable(number int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	err := unix.Capget(&header, &sets[0])
	return err == nil && sets[number/32].Effective&(1<<(number%32)) != 0
}

// interfaceType is the prefix of features that are kinds of network interfaces.
const interfaceType = "interface type "

// Interface skips the test unless the kernel has a kind of network interface: "macvlan".
func Interface(t testing.TB, kind string) {
	t.Helper()
	if lacks(interfaceType + kind) {
		Skip(t, interfaceType+kind, makeInterface(kind).Error())
	}
}

// makeInterface asks for an interface with a name that none can have. It always fails, with
// EOPNOTSUPP if the kernel does not know the kind.
func makeInterface(kind string) error {
	const parent = 1 // which some kinds need: the loopback
	return netlink.LinkAdd(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "no/name", ParentIndex: parent}, LinkType: kind})
}

// KernelAtLeast reports whether the running kernel is major.minor or later.
func KernelAtLeast(t testing.TB, major, minor int) bool {
	t.Helper()
	is, err := atLeast(major, minor)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

func atLeast(major, minor int) (bool, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return false, err
	}
	release := unix.ByteSliceToString(name.Release[:])

	var hasMajor, hasMinor int
	if _, err := fmt.Sscanf(release, "%d.%d", &hasMajor, &hasMinor); err != nil {
		return false, fmt.Errorf("parse kernel release %q: %w", release, err)
	}
	return hasMajor > major || hasMajor == major && hasMinor >= minor, nil
}

// older reports whether the kernel is known to be older than a version, "6.7".
func older(version string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return false
	}
	is, err := atLeast(major, minor)
	return err == nil && !is
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}
