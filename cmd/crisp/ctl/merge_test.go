package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"crisp/cri/client"
)

// source is a log of lines, each with its time in seconds, then perhaps an error.
func source(name string, end error, seconds ...int) func(context.Context, func(client.Line) error) error {
	return func(_ context.Context, f func(client.Line) error) error {
		buf := make([]byte, 0, 16) // is used again, as a reader does
		for _, s := range seconds {
			at := time.Unix(int64(s), 0)
			if s == 0 {
				at = time.Time{}
			}
			if err := f(client.Line{Time: at, Text: fmt.Appendf(buf[:0], "%s%d", name, s)}); err != nil {
				return err
			}
		}
		return end
	}
}

func TestMerge(t *testing.T) {
	errEnd := errors.New("end")
	many := make([]int, 10*aheadLines)
	for i := range many {
		many[i] = i + 1
	}
	for _, tt := range []struct {
		a, b []int
		err  error
		want string
	}{
		{nil, nil, nil, ""},
		{[]int{1, 4, 5}, nil, nil, "a1 a4 a5"},
		{[]int{1, 4, 5}, []int{2, 3, 6}, nil, "a1 b2 b3 a4 a5 b6"},
		{[]int{1, 1, 9}, []int{1, 2}, nil, "a1 a1 b1 b2 a9"},
		{[]int{5, 1, 6}, []int{2, 3}, nil, "b2 b3 a5 a1 a6"}, // the clock was set back
		{[]int{2, 0, 0, 9}, []int{3}, nil, "a2 a0 a0 b3 a9"},
		{[]int{2}, []int{1, 3}, errEnd, "b1 a2 b3"},
	} {
		var got []string
		write := func(l client.Line) error { got = append(got, string(l.Text)); return nil }
		err := merge(t.Context(), []func(context.Context, func(client.Line) error) error{source("a", nil, tt.a...), source("b", tt.err, tt.b...)},
			[]func(client.Line) error{write, write})
		if !errors.Is(err, tt.err) || strings.Join(got, " ") != tt.want {
			t.Errorf("%v and %v make %q, %v, want %q", tt.a, tt.b, got, err, tt.want)
		}
	}

	// A reader that fails is not waited for by the others, however much they have.
	fails := func(client.Line) error { return errEnd }
	err := merge(t.Context(), []func(context.Context, func(client.Line) error) error{source("a", nil, many...), source("b", nil, many...)}, []func(client.Line) error{fails, fails})
	if !errors.Is(err, errEnd) {
		t.Errorf("a writer's error: %v", err)
	}
}
