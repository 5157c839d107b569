package main

import (
	"slices"
	"testing"
)

func TestConsoleName(t *testing.T) {
	if got, want := []string{consoleName(1), consoleName(2)}, []string{"console.log", "console-2.log"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
