package pod

import (
	"strconv"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestSpecCacheIsBounded(t *testing.T) {
	var c specCache
	for n := range 100 {
		c.put(strconv.Itoa(n), &specs.Spec{Hostname: strconv.Itoa(n)}, maxSpecs/10)
		if s := c.get(strconv.Itoa(n)); s == nil || s.Hostname != strconv.Itoa(n) {
			t.Fatalf("spec %d: got %+v", n, s)
		}
		if c.bytes > maxSpecs || len(c.specs) > 10 {
			t.Fatalf("after %d specs %d are kept, of %d bytes", n+1, len(c.specs), c.bytes)
		}
	}

	c.put("99", &specs.Spec{}, 1)
	c.put("huge", &specs.Spec{}, maxSpecs+1)
	if s := c.get("huge"); s != nil {
		t.Error("a spec that is too large is kept")
	}

	for id := range c.specs {
		c.drop(id)
	}
	c.drop("unknown")

	if c.bytes != 0 || c.get("99") != nil {
		t.Errorf("%d bytes are left", c.bytes)
	}
}
