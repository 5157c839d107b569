// Package tally has counts of passed, failed and skipped tests, which programs
// that run tests pass to the one that adds them up.
package tally

import (
	"encoding/json"
	"fmt"
	"os"
)

// Tally counts tests by result.
type Tally struct {
	Passed, Failed, Skipped int
}

// Add returns the sum of two tallies.
func (t Tally) Add(o Tally) Tally {
	return Tally{t.Passed + o.Passed, t.Failed + o.Failed, t.Skipped + o.Skipped}
}

func (t Tally) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", t.Passed, t.Failed, t.Skipped)
}

// Write writes the tally to a file. An empty path does nothing.
func (t Tally) Write(path string) error {
	if path == "" {
		return nil
	}
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// Read reads what Write wrote.
func Read(path string) (Tally, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Tally{}, err
	}
	var t Tally
	if err := json.Unmarshal(data, &t); err != nil {
		return Tally{}, fmt.Errorf("read %s: %w", path, err)
	}
	return t, nil
}
