package client

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"crisp/runtime/wire"
)

// exitsName is the directory of exit records in a state directory.
const exitsName = "exits"

// ReadExits returns the exits that are recorded in a state directory and not
// yet forgotten, also those of a dead keeper. Unreadable records are left out
// and joined into the error; the others are returned along with it.
func ReadExits(stateDir string) ([]Exit, error) {
	dir := filepath.Join(stateDir, exitsName)
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read exit records: %w", err)
	}

	var exits []Exit
	var errs []error
	for _, d := range list {
		if !wire.ValidID(d.Name()) {
			continue // half-written
		}
		data, err := os.ReadFile(filepath.Join(dir, d.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // forgotten meanwhile
		}

		var x wire.Exited
		if err == nil {
			x, err = wire.ParseRecord(data)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read exit record %s: %w", d.Name(), err))
			continue
		}
		exits = append(exits, exitOf(x))
	}

	return exits, errors.Join(errs...)
}

// RemoveExit removes the exit record of an ID that no keeper holds any more.
func RemoveExit(stateDir, id string) error {
	if !wire.ValidID(id) {
		return fmt.Errorf("remove exit record: %w: id %q", ErrInvalid, id)
	}
	if err := os.Remove(filepath.Join(stateDir, exitsName, id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove exit record: %w", err)
	}
	return nil
}
