package main

import (
	"strings"
	"sync"
	"testing"
)

func TestLines(t *testing.T) {
	var out strings.Builder
	var turn sync.Mutex
	one, two := &lines{to: &out, turn: &turn, prefix: "1| "}, &lines{to: &out, turn: &turn, prefix: "2| "}
	for _, w := range []struct {
		to   *lines
		text string
	}{{one, "a"}, {two, "b\nc"}, {one, "d\ne\nf"}, {two, "\n"}, {one, ""}} {
		if n, err := w.to.Write([]byte(w.text)); n != len(w.text) || err != nil {
			t.Fatalf("write %q: %d, %v", w.text, n, err)
		}
	}

	if got, want := out.String(), "2| b\n1| ad\n1| e\n2| c\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
