package tally

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
)

func TestMainCountsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tally.json")
	for _, c := range []struct {
		ran    Tally
		err    error
		status int
		want   Tally
	}{
		{ran: Tally{Passed: 2, Skipped: 1}, want: Tally{Passed: 2, Skipped: 1}},
		{ran: Tally{Failed: 1}, status: 1, want: Tally{Failed: 1}},
		{ran: Tally{Passed: 2}, err: errors.New("left behind: a mount"), status: 1, want: Tally{Passed: 2, Failed: 1}},
	} {
		status := Main("tests", file, func(context.Context) (Tally, error) { return c.ran, c.err })
		if got, err := Read(file); status != c.status || got != c.want || err != nil {
			t.Errorf("%v and error %v: got status %d and %v, %v, want %d and %v", c.ran, c.err, status, got, err, c.status, c.want)
		}
	}
}
