package main

import (
	"slices"
	"testing"
)

func TestShare(t *testing.T) {
	all := []stage{{name: "cri"}, {name: "image"}, {name: "test/e2e"}, {name: "test/e2e/systemd"}, {name: "test/systemd"}}
	var got []string
	for _, part := range []string{"1/2", "2/2"} {
		some, err := share(slices.Clone(all), part)
		if err != nil {
			t.Fatal(err)
		}
		heavy := 0
		for _, s := range some {
			got = append(got, s.name)
			if minutes(s.name) > 1 {
				heavy++
			}
		}
		if heavy == 0 || heavy == 3 {
			t.Errorf("part %s has %d of three heavy stages", part, heavy)
		}
	}
	slices.Sort(got)
	want := make([]string, 0, len(all))
	for _, s := range all {
		want = append(want, s.name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("both parts: got %q, want %q", got, want)
	}
	for _, bad := range []string{"1", "0/2", "3/2", "a/b"} {
		if _, err := share(all, bad); err == nil {
			t.Errorf("part %q was accepted", bad)
		}
	}
}
