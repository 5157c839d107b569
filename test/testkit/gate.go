package testkit

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Strict reports whether skips are failures and leaks are looked for on the
// whole machine (CRISP_STRICT=1).
func Strict() bool { return os.Getenv("CRISP_STRICT") == "1" }

// Root skips the test when it does not run as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "root", "the test changes namespaces, mounts or cgroups")
	}
}

// Skip ends the test because the machine lacks feature. Where skips are not
// allowed ([Strict]) it fails the test, unless CRISP_LACKS, a comma-separated
// list, says that this machine is known to lack the feature.
func Skip(t testing.TB, feature, reason string) {
	t.Helper()
	if Strict() && !listed(os.Getenv("CRISP_LACKS"), feature) {
		t.Fatalf("%s is missing, and skips are failures here (add it to CRISP_LACKS if this machine cannot have it): %s", feature, reason)
	}
	t.Skipf("%s is missing: %s", feature, reason)
}

func listed(list, item string) bool {
	return slices.Contains(strings.Split(list, ","), item)
}
