package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"crisp/test/testkit/inventory"
)

// Leases are the addresses that the IPAM plugin has given away.
func (l *Lab) Leases() []string {
	files, _ := filepath.Glob(l.path("ipam/*/*")) // the pattern is good
	var leases []string
	for _, f := range files {
		if _, err := netip.ParseAddr(filepath.Base(f)); err == nil {
			leases = append(leases, filepath.Base(f))
		}
	}
	return leases
}

// Keeper is the keeper's process ID.
func (l *Lab) Keeper() (int, error) {
	want := "crisp-keeper\x00" + l.path("state") + "\x00"
	for _, name := range inventory.Names("/proc") {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if line, err := os.ReadFile(filepath.Join("/proc", name, "cmdline")); err == nil && string(line) == want {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("find the keeper of %s: %w", l.path("state"), os.ErrNotExist)
}
