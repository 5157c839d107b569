package keeper

import (
	"crisp/runtime/wire"
	"crisp/runtime/wire/pack"
)

// takeEntry1 reads an entry of version 1, in which descriptors are positional
// and -1 stands for none.
func takeEntry1(r *pack.Reader) (s savedEntry, err error) {
	add := func(role wire.Role) {
		if fd := int(r.Int()); fd >= 0 {
			s.files.Add(role, fd)
		}
	}

	s = savedEntry{id: r.String(), kind: wire.Kind(r.Uint()), adopted: r.Bool(), ended: r.Bool(), exited: r.Bool()}
	s.at, s.pid = r.Int(), r.Int()
	add(wire.PidFD)
	s.endedAt = r.Int()
	add(wire.Terminal)
	add(wire.Log)
	s.maxLine = r.Int()
	s.status, s.dropped, s.number, s.logs = r.Uint(), r.Uint(), r.Uint(), r.Int()
	s.keptNames = r.Strings(wire.MaxKept)

	for _, family := range []wire.Role{wire.Namespace, wire.Kept} {
		for range r.Count(wire.MaxKept) {
			add(family.Of(r.String()))
		}
	}

	streams := wire.Streams()
	for range r.Count(len(streams)) {
		roles := streams[0]
		if r.String() != roles.Name {
			roles = streams[1]
		}
		add(roles.Pipe)
		add(roles.Spool)
		for range r.Count(maxEntries) {
			add(roles.Sinks)
		}
	}
	return s, nil
}
