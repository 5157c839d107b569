package netns

import (
	"reflect"
	"strings"
	"testing"
)

const devHeader = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
`

func TestParseDev(t *testing.T) {
	got, err := parseDev(strings.NewReader(devHeader +
		"    lo:       1       2    3    4    5     6          7         8        9       10   11   12    13     14      15         16\n" +
		"averylongname12:18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []InterfaceStats{
		{"lo", Traffic{1, 2, 3, 4}, Traffic{9, 10, 11, 12}},
		{"averylongname12", Traffic{Bytes: 18446744073709551615}, Traffic{}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestParseDevRefuses(t *testing.T) {
	for _, line := range []string{"lo: 1 2 3\n", "lo: x 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", "lo: 1 2 3 4 5 6 7 8 9 10 11 -1 13 14 15 16\n"} {
		if got, err := parseDev(strings.NewReader(devHeader + line)); err == nil {
			t.Errorf("made %+v of %q", got, line)
		}
	}
}
