package keeper

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire"
)

// returned is what the service manager gave back of one entry.
type returned struct {
	stored
	meta, log int // the newest of each, -1 without one
	former    []int
	others    []int
	keptNames map[int]string // descriptor: its name in the store
}

// regain takes over what the store has, after the keeper before this one died
// with nobody to hand it over. An entry that cannot be made out is given up.
func (k *keeper) regain() {
	count, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	if err != nil || count != len(names) {
		return
	}

	list := map[uint64]*returned{}
	for i, name := range names {
		fd := listenFD + i
		if i == 0 { // the socket
			continue
		}

		unix.CloseOnExec(fd)
		number, kind, version, ok := cut(name)
		if !ok {
			k.logf("the store has an unknown %q", name)
			unix.Close(fd)
			continue
		}

		if list[number] == nil {
			list[number] = &returned{stored: *newStored(number), meta: -1, log: -1, keptNames: map[int]string{}}
		}
		k.store.count(&list[number].stored, name, 1)
		list[number].add(k, kind, version, name, fd)

		if last := k.store.last.Load(); number > last {
			k.store.last.Store(number)
		}
	}

	for _, r := range list {
		if err := k.regainEntry(r); err != nil {
			k.logf("take back what is stored: %v", err)
		}
	}
}

// add sorts a descriptor in. Of two logs, one was about to be exchanged.
func (r *returned) add(k *keeper, kind byte, version int, name string, fd int) {
	newer := func(have *int) (old int) {
		if *have < 0 || version >= r.stored.log {
			old, *have = *have, fd
			return old
		}
		return fd
	}
	switch kind {
	case 'm':
		if old := newer(&r.meta); old >= 0 {
			unix.Close(old)
		}
		r.stored.log = max(r.stored.log, version)
	case 'l':
		if old := newer(&r.log); old >= 0 {
			r.former = append(r.former, old)
		}
		r.stored.log = max(r.stored.log, version)
	case 'i':
		r.keptNames[fd] = name
		fallthrough
	default:
		r.others = append(r.others, fd)
	}
}

// regainEntry enters what came back in the table.
func (k *keeper) regainEntry(r *returned) (err error) {
	e := &entry{stored: &r.stored}
	defer func() {
		if err != nil {
			wire.CloseAll(append(r.others, r.former...))
			for fd, name := range r.keptNames {
				r.kept[strconv.Itoa(fd)] = name
			}
			k.withdraw(e, "")
		}
	}()

	if r.meta < 0 {
		return fmt.Errorf("entry %d: %w: no description", r.number, wire.ErrInvalid)
	}
	s, roles, err := readMeta(r.meta)
	unix.Close(r.meta)
	if err != nil {
		return fmt.Errorf("entry %d: %w", r.number, err)
	}

	e.id = s.id
	if _, err := os.Stat(k.exitPath(s.id)); err == nil {
		return fmt.Errorf("%s has ended: %w", s.id, wire.ErrNotRunning)
	}

	s.log, s.former = r.log, r.former
	if err := s.assign(roles, r); err != nil {
		return fmt.Errorf("%s: %w", s.id, err)
	}
	return k.restoreEntry(&s, &r.stored)
}

// assign finds out which descriptor is which.
func (s *savedEntry) assign(roles []role, r *returned) error {
	for _, want := range roles {
		for i, fd := range r.others {
			got, err := newRole(want.name, fd)
			if err == nil && got.dev == want.dev && got.ino == want.ino {
				s.place(got, r)
				r.others = append(r.others[:i:i], r.others[i+1:]...)
				break
			}
		}
	}

	wire.CloseAll(r.others)
	r.others = nil
	if s.pid != 0 && s.pidfd < 0 || len(s.outputs) > 0 && s.log < 0 {
		wire.CloseAll(s.files())
		return errors.New("its process or its log is not in the store")
	}
	return nil
}

// place puts a descriptor where it belongs. Pipe and spool of a stream come
// in this order.
func (s *savedEntry) place(r role, back *returned) {
	name, isSpool := strings.CutSuffix(r.name, spoolRole)
	ns, isNS := strings.CutPrefix(r.name, nsRole)
	kept, isKept := strings.CutPrefix(r.name, keepRole)
	switch {
	case r.name == rolePidfd:
		s.pidfd = r.fd
	case r.name == roleTTY:
		s.terminal = r.fd
	case isNS:
		s.namespaces = append(s.namespaces, named{ns, r.fd})
	case isKept:
		s.kept = append(s.kept, named{kept, r.fd})
		back.kept[kept] = back.keptNames[r.fd]
	case isSpool && len(s.outputs) > 0 && s.outputs[len(s.outputs)-1].name == name:
		s.outputs[len(s.outputs)-1].spool = r.fd
	default:
		s.outputs = append(s.outputs, savedOutput{name: r.name, pipe: r.fd, spool: -1})
	}
}
