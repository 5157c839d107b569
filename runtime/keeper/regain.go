package keeper

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire"
)

// returned are the descriptors of one entry that the service manager gave back.
type returned struct {
	stored
	meta, log int // the newest of each, -1 without one
	former    []int
	others    []int
	keptNames map[int]string // descriptor: its name in the store
}

// regain takes over what the store has after the keeper and the daemon died
// together. An entry that cannot be restored is dropped.
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
		number, kind, version, ok := parseName(name)
		if !ok {
			k.logf("the store has a descriptor with an unknown name %q", name)
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
			k.logf("restore from the store: %v", err)
		}
	}
}

// add sorts a descriptor by its kind. Two logs mean that the keeper died while
// it exchanged them.
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

// regainEntry adds an entry from the store to the table.
func (k *keeper) regainEntry(r *returned) (err error) {
	e := &entry{stored: &r.stored}
	defer func() {
		wire.CloseAll(r.others)
		if err != nil {
			for fd, name := range r.keptNames {
				r.kept[strconv.Itoa(fd)] = name
			}
			k.withdraw(e, "")
		}
	}()

	logs := wire.Files{}
	for _, fd := range r.former {
		logs.Add(wire.Former, fd)
	}
	if r.log >= 0 {
		logs.Add(wire.Log, r.log)
	}
	defer func() { logs.Close() }()

	if r.meta < 0 {
		return fmt.Errorf("entry %d: %w: no description", r.number, wire.ErrInvalid)
	}
	s, list, err := readMeta(r.meta)
	if err != nil {
		return fmt.Errorf("entry %d: %w", r.number, err)
	}

	e.id = s.id
	if _, err := os.Stat(k.exitPath(s.id)); err == nil {
		return fmt.Errorf("%s has ended: %w", s.id, wire.ErrNotRunning)
	}
	s.files, logs = logs, nil
	s.assign(list, r)
	if err := s.check(); err != nil {
		s.files.Close()
		return fmt.Errorf("store: %w", err)
	}
	return k.restoreEntry(&s, &r.stored)
}

// assign gives descriptors their roles by inode. Logs are known by their names.
func (s *savedEntry) assign(list []identity, r *returned) {
	for _, want := range list {
		for i, fd := range r.others {
			name, kept := r.keptNames[fd]
			if got, err := identify(want.role, fd); err != nil || got != want || kept != want.role.Is(wire.Kept) {
				continue
			}
			s.files.Add(want.role, fd)
			if kept {
				r.kept[want.role.Name(wire.Kept)] = name
			}
			r.others = slices.Delete(r.others, i, i+1)
			break
		}
	}
}
