package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"crisp/cri/config"
	"crisp/network"
	"crisp/network/own"
)

// fakeNetwork counts what it is asked.
type fakeNetwork struct {
	collected, checked int
	how                network.Check
	err                error
}

func (f *fakeNetwork) Collect(context.Context, bool) ([]own.Finding, error) {
	f.collected++
	return []own.Finding{{Level: own.LevelWarn, Repaired: true}}, f.err
}

func (f *fakeNetwork) Check(_ context.Context, how network.Check) ([]own.Finding, error) {
	f.checked, f.how = f.checked+1, how
	return []own.Finding{{Level: own.LevelFail, About: "node"}, {Level: own.LevelOK}}, f.err
}

// TestCareForNetwork collects at the start and then as often as is configured, and goes
// on after an error.
func TestCareForNetwork(t *testing.T) {
	const hour = config.Duration(time.Hour)
	for name, test := range map[string]struct {
		cfg                config.Config
		err                error
		collected, checked int
	}{
		"default":   {*config.Default(), nil, 5, 0},
		"all":       {config.Config{NetworkGCInterval: 2 * hour, NetworkCheckInterval: hour, NetworkSoleRuntime: true}, nil, 3, 4},
		"disabled":  {config.Config{}, nil, 0, 0},
		"only this": {config.Config{NetworkCheckInterval: hour}, errors.New("fails"), 0, 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeNetwork{err: test.err}
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Hour+time.Minute)
				defer cancel()

				careFor(ctx, f, &test.cfg)
				if f.collected != test.collected || f.checked != test.checked {
					t.Errorf("collected %d times, want %d; checked %d, want %d", f.collected, test.collected, f.checked, test.checked)
				}
				if f.checked > 0 && f.how != (network.Check{Repair: true, Sole: test.cfg.NetworkSoleRuntime}) {
					t.Errorf("checked with %+v", f.how)
				}
			})
		})
	}
}

// TestCareTellsOnce remembers a failure that stays.
func TestCareTellsOnce(t *testing.T) {
	c := &care{network: &fakeNetwork{}, told: map[own.Finding]bool{{Level: own.LevelWarn, About: "past"}: true}}
	c.check(t.Context())
	if len(c.told) != 1 || !c.told[own.Finding{Level: own.LevelFail, About: "node"}] {
		t.Errorf("remembers %v", c.told)
	}
}
