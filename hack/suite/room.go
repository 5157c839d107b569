package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/pace"
)

// room is the stages' environment: a directory for temporary files, on a
// machine that must not change.
type room struct {
	tmp    string
	before inventory.Inventory
}

// settleTime is how long resources may take to disappear by themselves.
const settleTime = 30 * time.Second

// newRoom creates the directory, and makes the stages use it.
func newRoom() (*room, error) {
	r := &room{before: inventory.Take()}
	var err error
	// A short name: the path of a socket must fit into 108 bytes.
	if r.tmp, err = os.MkdirTemp("", "c"); err != nil {
		return nil, err
	}
	// Programs with other user IDs must be able to traverse it.
	return r, errors.Join(os.Chmod(r.tmp, 0o755), os.Setenv("TMPDIR", r.tmp))
}

// leave removes the directory. Leaks of the stages are in the error.
func (r *room) leave() error {
	left := r.before.Settle(pace.Scale(settleTime), inventory.Scope{Marks: []string{r.tmp, "crisp", "/Test"}})
	// All of the stages' processes have exited: a lab that runs is unrelated.
	left = slices.DeleteFunc(left, inventory.OfRunningLab)
	for _, name := range inventory.Names(r.tmp) {
		left = append(left, "file "+filepath.Join(r.tmp, name))
	}
	var err error
	if len(left) > 0 {
		err = fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	return errors.Join(err, os.RemoveAll(r.tmp))
}
