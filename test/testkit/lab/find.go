package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"crisp/test/testkit/inventory"
)

// Leases are the addresses that the IPAM plugin, or crisp's default network, has given
// away.
func (l *Lab) Leases() []string {
	var leases []string
	files, _ := filepath.Glob(filepath.Join(l.IPAM(), "*/*"))    // the pattern is good
	ofDefault, _ := filepath.Glob(l.path("root/cni/leases/*/*")) // this one, too
	for _, f := range append(files, ofDefault...) {
		if _, err := netip.ParseAddr(filepath.Base(f)); err == nil {
			leases = append(leases, filepath.Base(f))
		}
	}
	return leases
}

// Keeper is the keeper's process ID.
func (l *Lab) Keeper() (int, error) {
	want := "crisp-keeper\x00" + l.path("state") + "\x00"
	is := func(pid int) bool {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return err == nil && string(line) == want
	}
	for _, name := range inventory.Names("/proc") {
		// A child that has not yet executed its program looks like the keeper.
		if pid, err := strconv.Atoi(name); err == nil && is(pid) && !is(inventory.Parent(pid)) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("find the keeper of %s: %w", l.path("state"), os.ErrNotExist)
}
