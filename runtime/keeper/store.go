package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire"
	"crisp/runtime/wire/pack"
)

// The service manager's file descriptor store is a third holder of the
// descriptors of the daemon and this process: when both are killed, the next
// keeper gets them back. For each entry it has
//
//	N      pidfd, terminal, namespaces, pipes, spools
//	N.iK   the kept descriptors, one name each, since each can be closed
//	N.lG   the log
//	N.mG   a memfd that describes the others
//
// where N is the entry's number in base 36 and G counts how often the log was
// reopened. The names are short because all of them have to fit into one
// variable of the next keeper's environment. The order in which descriptors
// come back is undefined, so each is identified by its inode, except the log,
// which may be newer than the description.
//
// At most 8 descriptors are stored for a container and 8 for a pod.

const (
	metaVersion = 1
	maxMeta     = 64 << 10
	maxRoles    = 2 * wire.MaxKept // of one entry

	// maxNames bounds the total length of all names. The kernel refuses to
	// execute a program with an environment variable of 128 KiB, so no keeper
	// would ever start again.
	maxNames = 120_000
	// storeTime is how long the service manager may take to read.
	storeTime = time.Second
)

// errStoreFull is an entry that is not stored because its names do not fit.
var errStoreFull = errors.New("the service manager's store is full: the container is lost if daemon and keeper are killed at once")

// store is the client of the service manager's store.
type store struct {
	address      string
	last         atomic.Uint64
	unresponsive bool // guarded by keeper.storeMu; the manager does not read, and is not waited for
	names        int  // guarded by keeper.storeMu; the length of all names with separators
}

// stored is what the store has of an entry; guarded by keeper.storeMu.
type stored struct {
	number uint64
	log    int               // how often the log was reopened
	kept   map[string]string // kept descriptor: its name in the store
	names  map[string]int    // name: how many descriptors have it
}

func newStored(number uint64) *stored {
	return &stored{number: number, kept: map[string]string{}, names: map[string]int{}}
}

// count adds n, which may be negative, to the number of descriptors of a name.
func (s *store) count(of *stored, name string, n int) {
	of.names[name] += n
	s.names += n * (len(name) + 1)
}

func (s *stored) name(rest ...any) string {
	return strconv.FormatUint(s.number, 36) + fmt.Sprint(rest...)
}

// send sends a notification to the service manager. It waits for a busy one,
// but only once and not for long: the manager may hang for good.
func (s *store) send(text string, fds []int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	defer unix.Close(fd)

	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}

	flags, limit := unix.MSG_NOSIGNAL, unix.NsecToTimeval(storeTime.Nanoseconds())
	if s.unresponsive {
		flags |= unix.MSG_DONTWAIT
	}

	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	if err == nil {
		err = unix.Sendmsg(fd, []byte(text), oob, &unix.SockaddrUnix{Name: s.address}, flags)
		s.unresponsive = errors.Is(err, unix.EAGAIN)
	}
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}

	return nil
}

// put stores descriptors. Without FDPOLL=0 the manager would drop a pipe once
// all its writers have closed it.
func (s *store) put(of *stored, name string, fds ...int) error {
	if len(fds) == 0 {
		return nil
	}
	s.count(of, name, len(fds))
	return s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fds)
}

func (s *store) drop(of *stored, name string) error {
	s.count(of, name, -of.names[name])
	return s.send("FDSTOREREMOVE=1\nFDNAME="+name, nil)
}

// deposit stores an entry that has just started; commands, which do not outlive
// their daemon, are not stored.
func (k *keeper) deposit(e *entry) {
	if k.store == nil || e.kind == wire.Exec {
		return
	}

	k.storeMu.Lock()
	defer k.storeMu.Unlock()
	files, err := k.copies(e)
	if err != nil {
		k.logf("store %s: %v", e.id, err)
		return
	}
	defer files.Close()

	s := newStored(k.store.last.Add(1))
	if longest := len(s.name(".i", wire.MaxKept)) + 1; k.store.names+(len(files)+1)*longest > maxNames {
		k.logf("store %s: %v", e.id, errStoreFull)
		return
	}

	for i, f := range files.Of(wire.Kept) {
		name := s.name(".i", i)
		s.kept[f.Role.Name(wire.Kept)] = name
		if err == nil {
			err = k.store.put(s, name, f.FD)
		}
	}

	if err == nil {
		err = k.store.put(s, s.name(), unnamed(files).Numbers()...)
	}
	if err == nil {
		err = k.depositLog(e, s, files)
	}
	if err != nil {
		k.logf("store %s: %v", e.id, err)
	}
	e.stored = s
}

// unnamed returns the descriptors that share an entry's name in the store.
func unnamed(files wire.Files) wire.Files {
	rest := slices.Clone(files)
	rest.TakeAll(wire.Kept, wire.Log, wire.Former)
	for _, s := range wire.Streams() {
		rest.TakeAll(s.Sinks) // an attached reader does not outlive the keeper
	}
	return rest
}

// copies returns copies of an entry's descriptors.
func (k *keeper) copies(e *entry) (wire.Files, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return e.copiesLocked()
}

// depositLog stores the log and the description of an entry.
func (k *keeper) depositLog(e *entry, s *stored, files wire.Files) error {
	if err := k.store.put(s, s.name(".l", s.log), files.Of(wire.Log).Numbers()...); err != nil {
		return err
	}
	text, err := e.meta(files)
	if err != nil {
		return err
	}

	meta, err := stateFile(text)
	if err != nil {
		return err
	}
	defer meta.Close()
	return k.store.put(s, s.name(".m", s.log), int(meta.Fd()))
}

// depositReopened stores an entry's log after it was reopened.
func (k *keeper) depositReopened(e *entry) {
	k.storeMu.Lock()
	defer k.storeMu.Unlock()
	s := e.stored
	if s == nil {
		return
	}

	files, err := k.copies(e)
	if err != nil {
		// What is stored keeps its names.
		k.logf("store log of %s: %v", e.id, err)
		return
	}
	defer files.Close()

	old := s.log
	s.log++
	err = k.depositLog(e, s, files)
	for _, kind := range []string{".m", ".l"} {
		if err == nil {
			err = k.store.drop(s, s.name(kind, old))
		}
	}

	if err != nil {
		k.logf("store log of %s: %v", e.id, err)
	}
}

// withdraw removes an entry from the store, or only one of its kept descriptors.
func (k *keeper) withdraw(e *entry, kept string) {
	k.storeMu.Lock()
	defer k.storeMu.Unlock()
	s := e.stored
	if s == nil {
		return
	}

	var names []string
	if name, ok := s.kept[kept]; ok {
		names = append(names, name)
		delete(s.kept, kept)
	}

	if kept == "" {
		names = append(names, s.name(".m", s.log), s.name(".l", s.log), s.name())
		for _, name := range s.kept {
			names = append(names, name)
		}
		e.stored = nil
	}

	for _, name := range names {
		if err := k.store.drop(s, name); err != nil {
			k.logf("remove %s from the store: %v", e.id, err)
		}
	}
}

// identity is a descriptor as it appears in the description.
type identity struct {
	role     wire.Role
	dev, ino uint64
}

func identify(r wire.Role, fd int) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return identity{}, fmt.Errorf("examine %q: %w", r, err)
	}
	return identity{r, uint64(st.Dev), st.Ino}, nil
}

// meta describes an entry and its descriptors.
func (e *entry) meta(files wire.Files) ([]byte, error) {
	var w pack.Writer
	w.Uint(metaVersion)
	w.String(e.id)
	w.Uint(uint64(e.kind))
	w.Int(e.at.UnixNano())

	pid, maxLine := 0, 0
	if e.proc != nil {
		pid = e.proc.pid
	}
	if e.log != nil {
		maxLine = e.log.MaxLine()
	}

	w.Int(int64(pid))
	w.Int(int64(maxLine))
	w.Uint(uint64(len(files)))
	for _, f := range files {
		id, err := identify(f.Role, f.FD)
		if err != nil {
			return nil, err
		}
		w.String(string(id.role))
		w.Uint(id.dev)
		w.Uint(id.ino)
	}

	return w.Bytes(), nil
}

// readMeta reads what meta wrote, and closes fd.
func readMeta(fd int) (s savedEntry, list []identity, err error) {
	f := os.NewFile(uintptr(fd), "description")
	defer f.Close()
	data, err := io.ReadAll(io.NewSectionReader(f, 0, maxMeta))
	if err != nil {
		return s, nil, fmt.Errorf("read description: %w", err)
	}

	r := pack.NewReader(data)
	if v := r.Uint(); v != metaVersion {
		return s, nil, fmt.Errorf("read description: %w: version %d", wire.ErrVersion, v)
	}

	s = savedEntry{id: r.String(), kind: wire.Kind(r.Uint()), adopted: true, at: r.Int(), pid: r.Int(), maxLine: r.Int()}
	for range r.Count(maxRoles) {
		list = append(list, identity{role: wire.Role(r.String()), dev: r.Uint(), ino: r.Uint()})
	}
	return s, list, r.Done()
}

// parseName returns the parts of a name in the store: number, kind and count.
func parseName(name string) (number uint64, kind byte, count int, ok bool) {
	head, rest, more := strings.Cut(name, ".")
	number, err := strconv.ParseUint(head, 36, 64)
	if err != nil || !more {
		return number, 0, 0, err == nil
	}
	if rest == "" {
		return 0, 0, 0, false
	}
	count, err = strconv.Atoi(rest[1:])
	return number, rest[0], count, err == nil && slices.Contains([]byte("ilm"), rest[0])
}
