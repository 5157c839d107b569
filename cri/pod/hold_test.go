package pod

import (
	"errors"
	"testing"
)

// TestKept keeps connections of a pod only while it is moving here: a container of a
// checkpoint that is created in it later has none at its addresses.
func TestKept(t *testing.T) {
	r := &Record{WantIPs: []string{"10.0.0.7", "fd00::7"}, Restoring: true}
	if got := r.kept(); len(got) != 2 || got[0].String() != "10.0.0.7" || got[1].String() != "fd00::7" {
		t.Errorf("while it moves here: %v", got)
	}
	r.Restoring = false
	if got := r.kept(); len(got) > 0 {
		t.Errorf("once it is here: %v", got)
	}
}

// TestWantAddresses refuses a network that gives others.
func TestWantAddresses(t *testing.T) {
	for _, test := range []struct {
		want, got []string
		ok        bool
	}{
		{nil, []string{"10.0.0.1"}, true},
		{[]string{"10.0.0.7"}, []string{"fd00::7", "10.0.0.7"}, true},
		{[]string{"10.0.0.7", "fd00::7"}, []string{"10.0.0.7"}, false},
		{[]string{"10.0.0.7"}, nil, false},
	} {
		if err := wantAddresses(test.want, test.got); (err == nil) != test.ok || err != nil && !errors.Is(err, ErrState) {
			t.Errorf("%q for %q: %v", test.got, test.want, err)
		}
	}
}
