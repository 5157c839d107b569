package seccomp

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxCached bounds the cached filters. A node has a handful of profiles.
const maxCached = 64

// Cache caches compiled filters by the content of their profiles. Its methods
// may be called concurrently.
type Cache struct {
	mu      sync.Mutex
	filters map[[sha256.Size]byte]Filter // guarded by mu
}

// NewCache returns an empty cache.
func NewCache() *Cache {
	return &Cache{filters: map[[sha256.Size]byte]Filter{}}
}

// Compile returns the filter of a profile for this machine, as [Compile] does.
// The filter is shared and must not be changed.
func (c *Cache) Compile(p *specs.LinuxSeccomp) (Filter, error) {
	key := sha256.Sum256(appendProfile(make([]byte, 0, 8192), p))
	c.mu.Lock()
	f, ok := c.filters[key]
	c.mu.Unlock()
	if ok {
		return f, nil
	}

	f, err := Compile(p)
	if err != nil {
		return Filter{}, err
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.filters) >= maxCached {
		clear(c.filters)
	}

	c.filters[key] = f
	return f, nil
}

// appendProfile encodes all that affects the filter, with length-prefixed lists.
func appendProfile(b []byte, p *specs.LinuxSeccomp) []byte {
	b = appendAction(b, p.DefaultAction, p.DefaultErrnoRet)
	b = appendStrings(b, []string{p.ListenerPath, p.ListenerMetadata})
	b = appendStrings(b, p.Architectures)
	if p.Flags == nil {
		b = append(b, 1)
	}

	b = appendStrings(b, p.Flags)
	b = binary.AppendUvarint(b, uint64(len(p.Syscalls)))
	for _, s := range p.Syscalls {
		b = appendAction(b, s.Action, s.ErrnoRet)
		b = appendStrings(b, s.Names)
		b = binary.AppendUvarint(b, uint64(len(s.Args)))
		for _, a := range s.Args {
			b = appendStrings(b, []specs.LinuxSeccompOperator{a.Op})
			b = binary.AppendUvarint(b, uint64(a.Index))
			b = binary.AppendUvarint(b, a.Value)
			b = binary.AppendUvarint(b, a.ValueTwo)
		}
	}

	return b
}

func appendAction(b []byte, a specs.LinuxSeccompAction, errno *uint) []byte {
	b = appendStrings(b, []specs.LinuxSeccompAction{a})
	if errno == nil {
		return append(b, 0)
	}
	return binary.AppendUvarint(append(b, 1), uint64(*errno))
}

func appendStrings[S ~string](b []byte, list []S) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}
