package criu

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	file_lock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	ipc_var "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-var"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/netdev"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pidns"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timens"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/userns"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/utsns"
)

// Magic numbers, from CRIU's criu/include/magic.h.
const (
	magicInventory = 0x58313116
	magicPstree    = 0x50273030
	magicCore      = 0x55053847
	magicIDs       = 0x54432030
	magicMM        = 0x57492820
	magicFdinfo    = 0x56213732
	magicFS        = 0x51403912
	magicPagemap   = 0x56084025
	magicSeccomp   = 0x64413049
	magicCgroup    = 0x59383330
	magicFiles     = 0x56303138
	magicMounts    = 0x55563928
	magicNetNS     = 0x55933752
	magicUTSNS     = 0x54473203
	magicIPCVar    = 0x53115007
	magicTimeNS    = 0x43114433
	magicUserNS    = 0x55474906
	magicPIDNS     = 0x61157326
	magicMemfd     = 0x48453499
	magicPipes     = 0x56453709
	magicFIFOs     = 0x59333054
	magicTTYInfo   = 0x59453036
	magicTTYData   = 0x59413026
	magicRemap     = 0x59133954
	magicQueues    = 0x56264026
	magicLocks     = 0x54323616
	magicGhost     = 0x52583605
	magicTCP       = 0x51465506
)

// Inventory is what is in the images of a dump, as far as it matters for whether they
// may be restored.
type Inventory struct {
	entry     *inventory.InventoryEntry
	processes []*process
	filters   []*seccomp.SeccompFilter
	cgroups   *cgroup.CgroupEntry
	files     map[uint32]*fdinfo.FileEntry
	mounts    []*mnt.MntEntry
	terminals map[uint32]*tty.TtyInfoEntry
	memfds    []*memfd.MemfdInodeEntry
	locks     int
	pipes     []*pipe_data.PipeDataEntry
	remaps    []*remap_file_path.RemapFilePathEntry
	ghosts    []ghost
	networks  []*netdev.NetnsEntry
	users     []*userns.UsernsEntry
	pidspaces []*pidns.PidnsEntry
	hasIPC    bool
	tmpfs     map[uint32]*tmpfs

	// bytes are those of memory and tmpfs that a restore fills.
	bytes int64
	// pages are the sizes of files of memory that no map has referred to yet.
	pages map[uint32]int64
}

// process is one in the tree.
type process struct {
	*pstree.PstreeEntry
	threads []*criu_core.CoreEntry // the first one first
	ids     *criu_core.TaskKobjIdsEntry
	fs      *fs.FsEntry
	memory  *mm.MmEntry
	open    []*fdinfo.FdinfoEntry
}

// States of processes, from CRIU's criu/include/pstree.h.
const (
	stateDead   = 2
	stateZombie = 6
)

// Inspect decodes the images of a dump, which are hostile: whatever they say is
// bounded in size, and files of kinds that are not known are refused, as CRIU might
// know them. What is known is compared by [Inventory.Check]. The error is [ErrImages], and
// [ErrUnsupported] for what CRIU might restore, but would for this container alone.
// When ctx ends, Inspect does, with the cause.
func Inspect(ctx context.Context, images string) (*Inventory, error) {
	d, err := openImages(ctx, images)
	if err != nil {
		return nil, fmt.Errorf("inspect images of CRIU: %w", err)
	}
	defer d.close()

	i := &Inventory{
		files: map[uint32]*fdinfo.FileEntry{}, terminals: map[uint32]*tty.TtyInfoEntry{},
		tmpfs: map[uint32]*tmpfs{}, pages: map[uint32]int64{},
	}
	for _, part := range []func(*imageDir) error{i.readInventory, i.readProcesses, i.readFiles, i.readRest, i.countPages, i.placeLinks} {
		if err := part(d); err != nil {
			return nil, fmt.Errorf("inspect images of CRIU: %w", err)
		}
	}
	return i, nil
}

// imageVersion is CRTOOLS_IMAGES_V1_1, from magic.h.
const imageVersion = 2

func (i *Inventory) readInventory(d *imageDir) (err error) {
	i.entry, err = one[*inventory.InventoryEntry](d, "inventory.img", magicInventory, maxEntry)
	if err != nil {
		return err
	}
	if v := i.entry.GetImgVersion(); v != imageVersion {
		return fmt.Errorf("%w: version %d, and only %d is known", ErrImages, v, imageVersion)
	}
	return nil
}

func (i *Inventory) readProcesses(d *imageDir) error {
	err := read(d, "pstree.img", magicPstree, maxEntry, plainly(func(e *pstree.PstreeEntry) error {
		i.processes = append(i.processes, &process{PstreeEntry: e})
		return nil
	}))
	if err != nil {
		return err
	}

	for _, p := range i.processes {
		if err := p.read(d); err != nil {
			return err
		}
		if d.has(name("pagemap-%d", p.GetPid())) {
			if err := i.readPagemap(d, name("pagemap-%d", p.GetPid())); err != nil {
				return err
			}
		}
	}
	return i.readDescriptors(d)
}

func name(format string, n uint32) string { return fmt.Sprintf(format, n) + ".img" }

// read reads the images of one process.
func (p *process) read(d *imageDir) (err error) {
	// The first thread has the state of the process.
	for n := p.GetPid(); ; n = p.tids()[len(p.threads)] {
		core, err := one[*criu_core.CoreEntry](d, name("core-%d", n), magicCore, maxEntry)
		if err != nil {
			return err
		}
		if p.threads = append(p.threads, core); len(p.threads) == len(p.tids()) {
			break
		}
	}

	if d.has(name("ids-%d", p.GetPid())) {
		if p.ids, err = one[*criu_core.TaskKobjIdsEntry](d, name("ids-%d", p.GetPid()), magicIDs, maxEntry); err != nil {
			return err
		}
	}
	if p.isGone() {
		return nil
	}
	if p.fs, err = one[*fs.FsEntry](d, name("fs-%d", p.GetPid()), magicFS, maxEntry); err != nil {
		return err
	}
	p.memory, err = one[*mm.MmEntry](d, name("mm-%d", p.GetPid()), magicMM, maxLarge)
	return err
}

// tids are the IDs of the threads, that of the process first. Of a process that has ended
// CRIU writes no others, but whatever it has in memory there.
func (p *process) tids() []uint32 {
	first := []uint32{p.GetPid()}
	if p.isGone() {
		return first
	}
	return append(first, slices.DeleteFunc(slices.Clone(p.GetThreads()), func(n uint32) bool { return n == p.GetPid() })...)
}

// isGone reports whether a process has ended, and only its parent does not know yet.
func (p *process) isGone() bool {
	state := p.threads[0].GetTc().GetTaskState()
	return state == stateDead || state == stateZombie
}

// readDescriptors reads the tables of open files, which processes may share.
func (i *Inventory) readDescriptors(d *imageDir) error {
	tables := map[uint32][]*fdinfo.FdinfoEntry{}
	for _, p := range i.processes {
		if p.isGone() {
			continue
		}

		id := p.ids.GetFilesId()
		if _, ok := tables[id]; !ok {
			tables[id] = nil
			err := read(d, name("fdinfo-%d", id), magicFdinfo, maxEntry, plainly(func(e *fdinfo.FdinfoEntry) error {
				tables[id] = append(tables[id], e)
				return nil
			}))
			if err != nil {
				return err
			}
		}
		p.open = tables[id]
	}
	return nil
}

func (i *Inventory) readFiles(d *imageDir) error {
	return read(d, filesImage, magicFiles, maxEntry, plainly(func(e *fdinfo.FileEntry) error {
		if _, ok := i.files[e.GetId()]; ok {
			return fmt.Errorf("%w: file %d is there twice", ErrImages, e.GetId())
		}
		i.files[e.GetId()] = e
		return nil
	}))
}

// placeLinks notes on which mounts links are, and of what, see [Link]. CRIU does not: it makes each where
// the file was that it is for.
func (i *Inventory) placeLinks(*imageDir) error {
	for _, r := range i.remaps {
		of, link := i.files[r.GetOrigId()].GetReg(), i.files[r.GetRemapId()].GetReg()
		if r.GetRemapType() != remap_file_path.RemapType_LINKED {
			continue
		}
		if of == nil || link == nil || link.GetMntId() >= 0 && link.MntId != nil || path.Dir(of.GetName()) != path.Dir(link.GetName()) {
			return fmt.Errorf("%w: file %d has another name, which is none", ErrImages, r.GetOrigId())
		}
		link.MntId, link.Mode = of.MntId, of.Mode // CRIU compares it with what it opens
	}
	return nil
}

// readPagemap counts the memory of a map, and finds out which file it is in.
func (i *Inventory) readPagemap(d *imageDir, file string) error {
	f, _, err := d.take(file)
	if err != nil {
		return err
	}
	defer f.Close()
	id, pages, err := readPagemap(d, f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if _, ok := i.pages[id]; ok {
		return fmt.Errorf("%w: %s has the memory of another", ErrImages, file)
	}
	i.pages[id] = pages
	return nil
}

// countPages compares files of memory with their maps. They are read last, when all
// maps are known.
func (i *Inventory) countPages(d *imageDir) error {
	for id, want := range i.pages {
		file := name("pages-%d", id)
		if want == 0 && !d.has(file) {
			continue
		}
		size, ok := d.left[file]
		delete(d.left, file)
		if !ok || size != want {
			return fmt.Errorf("%w: %s has %d bytes, and its map %d", ErrImages, file, size, want)
		}
		i.bytes += size
	}

	if left := d.names(); len(left) > 0 {
		return fmt.Errorf("%w: nothing refers to %.100q, or its kind is not known", ErrImages, left[0])
	}
	return nil
}

// Flags of a page map, from CRIU's criu/include/pagemap.h.
const (
	pageParent  = 1 << 0
	pageLazy    = 1 << 1
	pagePresent = 1 << 2
)

func readPagemap(d *imageDir, f *os.File) (id uint32, bytes int64, err error) {
	r := newImageReader(d, f, maxEntry)
	if err := r.begin(magicPagemap); err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrImages, err)
	}
	var head pagemap.PagemapHead
	if err := r.next(&head); err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrImages, noEOF(err))
	}

	page := int64(os.Getpagesize())
	for {
		if d.ctx.Err() != nil {
			return 0, 0, context.Cause(d.ctx)
		}
		var e pagemap.PagemapEntry
		err := r.next(&e)
		if err == io.EOF {
			return head.GetPagesId(), bytes, nil
		}
		if err != nil {
			return 0, 0, fmt.Errorf("%w: %w", ErrImages, err)
		}

		pages := e.GetNrPages()
		if e.NrPages == nil {
			pages = uint64(e.GetCompatNrPages())
		}
		if e.GetInParent() || e.GetFlags()&^(pageLazy|pagePresent) != 0 {
			return 0, 0, fmt.Errorf("%w: memory of an earlier dump, or of a kind that is not known", ErrImages)
		}
		if pages > 1<<40 || bytes > 1<<60 {
			return 0, 0, fmt.Errorf("%w: %d pages in a row", ErrImages, pages)
		}
		if e.Flags == nil || e.GetFlags()&pagePresent != 0 {
			bytes += int64(pages) * page
		}
	}
}

// readRest reads what is there once, or for things that others refer to.
func (i *Inventory) readRest(d *imageDir) error {
	for _, file := range d.names() {
		if !d.has(file) {
			continue // read with another
		}
		stem, ok := strings.CutSuffix(file, ".img")
		if !ok {
			return fmt.Errorf("%w: %.100q is no image", ErrImages, file)
		}
		kind, number := stem, ""
		if at := strings.LastIndexByte(stem, '-'); at >= 0 && strings.Trim(stem[at+1:], "0123456789abcdef") == "" && stem[at+1:] != "" {
			kind, number = stem[:at], stem[at+1:]
		}
		if err := i.readKind(d, file, kind, number); err != nil {
			return err
		}
	}
	return nil
}

// readKind reads an image by the kind that its name says, and is not called for those
// of processes and their memory.
func (i *Inventory) readKind(d *imageDir, file, kind, number string) (err error) {
	if strings.HasPrefix(kind, "tmpfs-dev-") && number == "" {
		return i.readTmpfs(d, file)
	}
	switch kind {
	case "pages":
		return nil // is counted with its map
	case "pagemap-shmem":
		return i.readPagemap(d, file)
	case "seccomp":
		var e *seccomp.SeccompEntry
		if e, err = one[*seccomp.SeccompEntry](d, file, magicSeccomp, maxLarge); err == nil {
			i.filters = e.GetSeccompFilters()
		}
		return err
	case "cgroup":
		i.cgroups, err = one[*cgroup.CgroupEntry](d, file, magicCgroup, maxLarge)
		return err
	case "mountpoints":
		return read(d, file, magicMounts, maxEntry, collect(&i.mounts))
	case "netns":
		return read(d, file, magicNetNS, maxEntry, collect(&i.networks))
	case "userns":
		return read(d, file, magicUserNS, maxEntry, collect(&i.users))
	case "pidns":
		return read(d, file, magicPIDNS, maxEntry, collect(&i.pidspaces))
	case "utsns":
		_, err = one[*utsns.UtsnsEntry](d, file, magicUTSNS, maxEntry)
		return err
	case "timens":
		_, err = one[*timens.TimensEntry](d, file, magicTimeNS, maxEntry)
		return err
	case "ipcns-shm", "ipcns-msg", "ipcns-sem":
		return fmt.Errorf("%w: shared memory, queues or semaphores of System V, which are the pod's (%.100q)", ErrUnsupported, file)
	case "ipcns-var":
		i.hasIPC = true
		_, err = one[*ipc_var.IpcVarEntry](d, file, magicIPCVar, maxEntry)
		return err
	}
	return i.readObjects(d, file, kind)
}

// collect makes an entry function that keeps all.
func collect[M any](list *[]M) func(M) (int64, error) {
	return plainly(func(m M) error {
		*list = append(*list, m)
		return nil
	})
}

// readObjects reads an image of things that descriptors refer to.
func (i *Inventory) readObjects(d *imageDir, file, kind string) error {
	switch kind {
	case "memfd":
		return read(d, file, magicMemfd, maxEntry, collect(&i.memfds))
	case "remap-fpath":
		return read(d, file, magicRemap, maxEntry, collect(&i.remaps))
	case "filelocks":
		return read(d, file, magicLocks, maxEntry, plainly(func(*file_lock.FileLockEntry) error { i.locks++; return nil }))
	case "pipes-data", "fifo-data":
		magic := uint32(magicPipes)
		if kind == "fifo-data" {
			magic = magicFIFOs
		}
		return read(d, file, magic, maxEntry, func(e *pipe_data.PipeDataEntry) (int64, error) {
			i.pipes = append(i.pipes, e)
			return int64(e.GetBytes()), nil
		})
	case "sk-queues":
		return read(d, file, magicQueues, maxEntry, func(e *sk_packet.SkPacketEntry) (int64, error) { return int64(e.GetLength()), nil })
	case "tcp-stream":
		return read(d, file, magicTCP, maxEntry, func(e *tcp_stream.TcpStreamEntry) (int64, error) {
			return int64(e.GetInqLen()) + int64(e.GetOutqLen()), nil
		})
	case "tty-info":
		return read(d, file, magicTTYInfo, maxEntry, plainly(func(e *tty.TtyInfoEntry) error {
			i.terminals[e.GetId()] = e
			return nil
		}))
	case "tty-data":
		return read(d, file, magicTTYData, maxEntry, plainly(func(*tty.TtyDataEntry) error { return nil }))
	case "ghost-file":
		return i.readGhost(d, file)
	}
	return fmt.Errorf("%w: no image of the kind of %.100q is known", ErrImages, file)
}

// Needs is what a restore must be given, under the names that the images have for it,
// which are those of [Externals].
type Needs struct {
	// Network is the network namespace: it is saved as "net".
	Network bool
	// Connections means that all TCP connections can go on in a network namespace of the
	// pod's.
	Connections bool
	// Mounts are the paths of mounts, saved as "mnt[PATH]".
	Mounts []string
	// Open are the paths of files on these that the processes have open or mapped.
	Open []string
	// Streams are the first three descriptors of the first process: "pipe:[13956221]",
	// "file[3a:5]", "tty[88:1]", "" for others.
	Streams [3]string
	// Files and Terminals are all of these that any process has.
	Files, Terminals []string
}

// Needs returns what a restore must be given. The addresses are those at which peers of the
// processes know them, and were not told of an end.
func (i *Inventory) Needs(addresses ...netip.Addr) Needs {
	n := Needs{Network: slices.ContainsFunc(i.networks, func(e *netdev.NetnsEntry) bool { return e.GetExtKey() != "" })}
	n.Connections = n.Network && i.keepsConnections(addresses)
	for _, m := range i.mounts {
		if m.GetExtKey() != "" {
			n.Mounts = append(n.Mounts, m.GetExtKey())
		}
	}

	for _, f := range i.files {
		if reg := f.GetReg(); reg != nil && !reg.GetExt() && i.mount(reg.GetMntId()).GetExtKey() != "" {
			n.Open = append(n.Open, reg.GetName())
		}
		if key := i.external(f); strings.HasPrefix(key, "file[") && !slices.Contains(n.Files, key) {
			n.Files = append(n.Files, key)
		} else if strings.HasPrefix(key, "tty[") && !slices.Contains(n.Terminals, key) {
			n.Terminals = append(n.Terminals, key)
		}
	}
	slices.Sort(n.Files)
	slices.Sort(n.Terminals)
	for _, p := range i.processes {
		for _, fd := range p.open {
			if p.GetPpid() == 0 && fd.GetFd() < uint32(len(n.Streams)) {
				n.Streams[fd.GetFd()] = i.external(i.files[fd.GetId()])
			}
		}
	}
	return n
}

// external is the name of what a file is outside, or of a pipe, whose other end is.
func (i *Inventory) external(f *fdinfo.FileEntry) string {
	switch {
	case f.GetReg().GetExt():
		return f.GetReg().GetName()
	case f.GetPipe() != nil:
		return "pipe:[" + strconv.FormatUint(uint64(f.GetPipe().GetPipeId()), 10) + "]"
	case f.GetTty() != nil:
		if info := i.terminals[f.GetTty().GetTtyInfoId()]; info.GetType() == tty.TtyType_EXT_TTY {
			return fmt.Sprintf("tty[%x:%x]", info.GetRdev(), info.GetDev())
		}
	}
	return ""
}
