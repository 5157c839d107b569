package durable

import "testing"

func TestBootID(t *testing.T) {
	id, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := BootID(); err != nil || again != id || len(id) != 36 {
		t.Errorf("boot IDs %q and %q, %v; want the same UUID twice", id, again, err)
	}
}
