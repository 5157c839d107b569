package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"crisp/cri/client"
)

// lines is a log of lines, each with its time in seconds, then perhaps an error.
func lines(name string, end error, seconds ...int) func(context.Context, func(client.Line) error, func(time.Time) error) error {
	return func(_ context.Context, f func(client.Line) error, _ func(time.Time) error) error {
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
		err := merge(t.Context(), []source{{lines("a", nil, tt.a...), write}, {lines("b", tt.err, tt.b...), write}})
		if !errors.Is(err, tt.err) || strings.Join(got, " ") != tt.want {
			t.Errorf("%v and %v make %q, %v, want %q", tt.a, tt.b, got, err, tt.want)
		}
	}

	// A reader that fails is not waited for by the others, however much they have.
	fails := func(client.Line) error { return errEnd }
	err := merge(t.Context(), []source{{lines("a", nil, many...), fails}, {lines("b", nil, many...), fails}})
	if !errors.Is(err, errEnd) {
		t.Errorf("a writer's error: %v", err)
	}
}

// live is a log that is followed, as the test says.
type live struct {
	client.Line
	end time.Time
}

// TestMergeFollows writes lines of logs that are followed in the order of their times,
// as soon as the others have come as far, and without one that says nothing.
func TestMergeFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		written := make(chan string, 10)
		logs, say := make([]source, 2), make([]chan live, 2)
		for i := range logs {
			say[i] = make(chan live)
			logs[i] = source{
				read: func(_ context.Context, line func(client.Line) error, end func(time.Time) error) error {
					for l := range say[i] {
						if l.end.IsZero() {
							if err := line(l.Line); err != nil {
								return err
							}
						} else if err := end(l.end); err != nil {
							return err
						}
					}
					return nil
				},
				write: func(l client.Line) error { written <- string(l.Text); return nil },
			}
		}
		done := make(chan error, 1)
		go func() { done <- merge(t.Context(), logs) }()

		line := func(i int, at time.Time, text string) {
			say[i] <- live{Line: client.Line{Time: at, Text: []byte(text)}}
		}
		end := func(i int) { say[i] <- live{end: time.Now()} }
		want := func(what string, lines ...string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for range len(written) {
				got = append(got, <-written)
			}
			if !slices.Equal(got, lines) {
				t.Errorf("%s: %q were written, want %q", what, got, lines)
			}
		}

		start := time.Now()
		line(0, start.Add(-time.Hour), "a old")
		time.Sleep(10 * quietTime)
		want("the other log is still read")
		line(1, start.Add(-2*time.Hour), "b older")
		end(0)
		end(1)
		want("both were read", "b older", "a old")

		time.Sleep(time.Second)
		line(0, time.Now(), "a late")
		want("the other has not been read as far")
		line(1, time.Now().Add(-time.Millisecond), "b early")
		end(0)
		want("it has an earlier line", "b early")
		time.Sleep(2 * writeTime)
		end(1)
		want("it has no more", "a late")

		line(1, time.Now().Add(time.Hour), "b of tomorrow")
		time.Sleep(2 * writeTime)
		end(0)
		want("a clock was set back", "b of tomorrow")

		end(0)
		line(1, time.Now(), "b without a")
		want("the other has not been read as far")
		time.Sleep(quietTime * 3 / 2)
		want("the other says nothing", "b without a")

		line(0, time.Now(), "a last")
		close(say[1])
		want("the other has ended", "a last")
		close(say[0])
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestMergeFails goes on without a log that cannot be read.
func TestMergeFails(t *testing.T) {
	errEnd := errors.New("end")
	var got []string
	write := func(l client.Line) error { got = append(got, string(l.Text)); return nil }
	err := merge(t.Context(), []source{{lines("a", errEnd, 1), write}, {lines("b", nil, 2, 3), write}})
	if !errors.Is(err, errEnd) || strings.Join(got, " ") != "a1 b2 b3" {
		t.Errorf("%q, %v", got, err)
	}
}
