package netns

import (
	"reflect"
	"strings"
	"testing"

	"crisp/runtime/untrusted"
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
		{untrusted.Of("lo"), Traffic{1, 2, 3, 4}, Traffic{9, 10, 11, 12}},
		{untrusted.Of("averylongname12"), Traffic{Bytes: 18446744073709551615}, Traffic{}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

// Names may be anything but a few bytes, and interfaces any number.
func TestParseDevOfAnybody(t *testing.T) {
	const counters = ": 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"
	got, err := parseDev(strings.NewReader(devHeader + " \xff\xfe" + counters + "\u0085x" + counters + "cut: 1 2"))
	if err != nil || len(got) != 2 || !got[0].Name.Is("\xff\xfe") || !got[1].Name.Is("\u0085x") {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err = parseDev(strings.NewReader(devHeader + strings.Repeat("v"+counters, 10*maxInterfaces))); err != nil || len(got) != maxInterfaces {
		t.Errorf("got %d interfaces, %v", len(got), err)
	}
}

func TestParseDevRefuses(t *testing.T) {
	for _, line := range []string{"lo: 1 2 3\n", "lo: x 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", "lo: 1 2 3 4 5 6 7 8 9 10 11 -1 13 14 15 16\n"} {
		if got, err := parseDev(strings.NewReader(devHeader + line)); err == nil {
			t.Errorf("made %+v of %q", got, line)
		}
	}
}
