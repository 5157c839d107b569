//go:build crash

package pod

import "time"

// killTimeout is short for tests.
const killTimeout = 5 * time.Second

// Tables lists the steps of the tables, in order.
func Tables() (sandbox, container []string) {
	for _, s := range sandboxSteps {
		sandbox = append(sandbox, s.name)
	}
	for _, s := range containerSteps {
		container = append(container, s.name)
	}
	return sandbox, container
}
