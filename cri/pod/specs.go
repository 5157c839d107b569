package pod

import (
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxSpecs bounds the specs kept in memory, in bytes as they are encoded.
const maxSpecs = 1 << 20

// specCache keeps the runtime-specs of containers, so that a start or an exec
// need not read them back from disk. A spec never changes once it is created;
// callers must not change it either.
type specCache struct {
	mu    sync.Mutex
	specs map[string]keptSpec // guarded by mu; by container
	bytes int                 // guarded by mu
}

type keptSpec struct {
	spec  *specs.Spec
	bytes int
}

func (c *specCache) get(id string) *specs.Spec {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.specs[id].spec
}

// put adds a spec of so many encoded bytes, and evicts others if there are too
// many.
func (c *specCache) put(id string, s *specs.Spec, bytes int) {
	if bytes > maxSpecs {
		return
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(id)
	for other := range c.specs {
		if c.bytes+bytes <= maxSpecs {
			break
		}
		c.dropLocked(other)
	}

	if c.specs == nil {
		c.specs = map[string]keptSpec{}
	}
	c.specs[id] = keptSpec{s, bytes}
	c.bytes += bytes
}

func (c *specCache) drop(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(id)
}

func (c *specCache) dropLocked(id string) {
	c.bytes -= c.specs[id].bytes
	delete(c.specs, id)
}
