package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/pace"
)

// room is where the stages run: a directory for temporary files, on a machine
// that is to be afterwards as it was before.
type room struct {
	tmp    string
	before inventory.Inventory
}

// settleTime is how long leavings may take to go by themselves.
const settleTime = 30 * time.Second

// newRoom makes the directory, and the stages use it.
func newRoom() (*room, error) {
	r := &room{before: inventory.Take()}
	var err error
	// A short name: that of a socket has to fit into 108 bytes.
	if r.tmp, err = os.MkdirTemp("", "c"); err != nil {
		return nil, err
	}
	// Programs with other user IDs have to get through.
	return r, errors.Join(os.Chmod(r.tmp, 0o755), os.Setenv("TMPDIR", r.tmp))
}

// leave removes the directory. What the stages left is in the error.
func (r *room) leave() error {
	left := r.before.Settle(pace.Scale(settleTime), inventory.Scope{Marks: []string{r.tmp, "crisp", "/Test"}})
	left = slices.DeleteFunc(left, elsewhere)
	for _, name := range inventory.Names(r.tmp) {
		left = append(left, "file "+filepath.Join(r.tmp, name))
	}
	var err error
	if len(left) > 0 {
		err = fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	return errors.Join(err, os.RemoveAll(r.tmp))
}

var cgroupOfLab = regexp.MustCompile(`^cgroup .*/crisp_(?:lab|suite)_(\d+)`)

// elsewhere reports whether what is left is a cgroup of a lab whose process
// runs: all of the stages' have ended, so it is somebody else's.
func elsewhere(what string) bool {
	m := cgroupOfLab.FindStringSubmatch(what)
	if m == nil {
		return false
	}
	_, err := os.Stat("/proc/" + m[1])
	return err == nil
}
