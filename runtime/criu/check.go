package criu

import (
	"bytes"
	"fmt"
	"math"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/userns"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/capability"
)

// Check compares the images with what a container may have: see the documentation of
// the package for what is compared, and why. The error is [ErrForbidden] for what the
// container may not have, [ErrDiffers] for mounts that only one of both has, and [ErrImages]
// for images that contradict themselves.
func (i *Inventory) Check(a Allowed) error {
	for _, part := range []func(*Allowed) error{i.checkInventory, i.checkTree, i.checkProcesses, i.checkNamespaces, i.checkMounts, i.checkFiles, i.checkMemory} {
		if err := part(&a); err != nil {
			return fmt.Errorf("check images of CRIU: %w", err)
		}
	}
	return nil
}

// forbidden is an [ErrForbidden].
func forbidden(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrForbidden, fmt.Errorf(format, args...))
}

// differs is an [ErrDiffers].
func differs(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDiffers, fmt.Errorf(format, args...))
}

// wrong is an [ErrImages].
func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrImages, fmt.Errorf(format, args...))
}

// checkInventory checks what CRIU takes from the images as its own options.
func (i *Inventory) checkInventory(a *Allowed) error {
	const lockMethods = 3
	e := i.entry
	switch {
	case len(e.GetPluginsEntry().GetPlugins()) > 0 || e.GetPluginsEntry() == nil:
		return forbidden("plugins of CRIU are to read them, or an old CRIU that does not say which ones has written them")
	case e.GetAllowUprobes():
		return forbidden("they have probes")
	case e.GetNetworkLockMethod() >= lockMethods:
		return wrong("they lock the network in way %d", e.GetNetworkLockMethod())
	case !isRunID(e.GetDumpCriuRunId()):
		// It becomes a part of a command to the packet filter.
		return wrong("the identity of the dump is %.40q", e.GetDumpCriuRunId())
	case e.GetRootIds() == nil:
		return wrong("they do not say which namespaces are the node's")
	case a.Labelled && e.GetLsmtype() == inventory.Lsmtype_NO_LSM:
		return forbidden("their processes have no label, and the container's have")
	}

	for _, c := range i.cgroups.GetControllers() {
		if len(c.GetDirs()) > 0 {
			return forbidden("they have cgroups with settings")
		}
	}
	return nil
}

// isRunID reports whether a text is like a UUID, or the number of older versions.
func isRunID(text string) bool {
	for _, c := range []byte(text) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(text) <= 36
}

// checkTree checks that there is one tree of processes.
func (i *Inventory) checkTree(a *Allowed) error {
	seen := map[uint32]bool{}
	tasks := int64(0)
	for n, p := range i.processes {
		root := n == 0
		if root != (p.GetPpid() == 0) || root && p.GetPid() != 1 || !root && !seen[p.GetPpid()] {
			return wrong("process %d has parent %d, which is not in the tree before it", p.GetPid(), p.GetPpid())
		}
		// Of another session the restored process would have the terminal, if there is one.
		if p.GetSid() == 0 || p.GetPgid() == 0 {
			return wrong("process %d is of a session outside", p.GetPid())
		}
		for _, tid := range p.tids() {
			if tid == 0 || tid > math.MaxInt32 || seen[tid] {
				return wrong("process or thread %d is there twice", tid)
			}
			seen[tid] = true
			tasks++
		}
	}

	if len(i.processes) == 0 {
		return wrong("they have no process")
	}
	if a.Pids > 0 && tasks > a.Pids {
		return forbidden("%d processes and threads, and the limit is %d", tasks, a.Pids)
	}
	return nil
}

func (i *Inventory) checkProcesses(a *Allowed) error {
	for _, p := range i.processes {
		if p.isGone() {
			continue // it is made to end at once, with nothing
		}
		err := i.checkProcess(a, p)
		for _, t := range p.threads {
			if err == nil {
				err = i.checkThread(a, t)
			}
		}
		if err != nil {
			return fmt.Errorf("process %d: %w", p.GetPid(), err)
		}
	}
	return nil
}

// checkProcess checks what a process has as a whole.
func (i *Inventory) checkProcess(a *Allowed, p *process) error {
	tc := p.threads[0].GetTc()
	if tc == nil || p.ids == nil {
		return wrong("it has no state")
	}
	may := a.mayGain().Has
	if tc.OomScoreAdj == nil || int(tc.GetOomScoreAdj()) < a.OOMScoreAdj && !may("CAP_SYS_RESOURCE") {
		return forbidden("its oom_score_adj %d is less than the container's %d, or missing", tc.GetOomScoreAdj(), a.OOMScoreAdj)
	}
	if uid := tc.GetLoginuid(); tc.Loginuid != nil && uid != unsetUID && uid != a.LoginUID {
		return forbidden("its login user is %d", uid)
	}

	limits := tc.GetRlimits().GetRlimits()
	if len(limits) != rlimits {
		return forbidden("it has %d resource limits, and must have %d", len(limits), rlimits)
	}
	for n, l := range limits {
		if most, ok := a.Rlimits[n]; ok && l.GetMax() > most && !may("CAP_SYS_RESOURCE") {
			return forbidden("its resource limit %d is %d, and the container's %d", n, l.GetMax(), most)
		}
		if l.GetCur() > l.GetMax() {
			return wrong("its resource limit %d is %d of at most %d", n, l.GetCur(), l.GetMax())
		}
	}
	return i.checkAreas(p)
}

// rlimits is how many resources have limits, RLIM_NLIMITS.
const rlimits = 16

// checkAreas checks the kinds of a process's memory. Those of files are in its files.
func (i *Inventory) checkAreas(p *process) error {
	// From CRIU's criu/include/image.h: regular, stack, heap, vDSO, files, anonymous,
	// System V, ring of asynchronous input, memfd, shadow stack, guard.
	const known = (1<<17 - 1) &^ (1 << 11)
	// What is mapped after its start, or is not to be written: hints of the dump.
	const hints = 1<<28 | 1<<29
	for _, v := range p.memory.GetVmas() {
		if v.GetStatus()&^(known|hints) != 0 {
			return forbidden("memory of a kind %#x that is not known", v.GetStatus())
		}
		if v.GetEnd() < v.GetStart() {
			return wrong("memory from %#x to %#x", v.GetStart(), v.GetEnd())
		}
	}
	return nil
}

// checkThread checks the rights of a thread.
func (i *Inventory) checkThread(a *Allowed, core *criu_core.CoreEntry) error {
	t := core.GetThreadCore()
	if t == nil || t.GetCreds() == nil {
		return wrong("a thread has no rights")
	}
	if err := checkCreds(a, t.GetCreds()); err != nil {
		return err
	}

	const normal, batch, idle = 0, 3, 5
	if !a.mayGain().Has("CAP_SYS_NICE") && !a.Scheduled {
		if p := t.GetSchedPolicy(); p != normal && p != batch && p != idle || t.GetSchedNice() < 0 {
			return forbidden("it is scheduled ahead of others, with policy %d and nice %d", p, t.GetSchedNice())
		}
	}
	return i.checkFilter(a, t)
}

// checkFilter checks that a thread has the container's filter of system calls. It may
// have more of its own, which only make less possible.
func (i *Inventory) checkFilter(a *Allowed, t *criu_core.ThreadCoreEntry) error {
	if a.Filter == nil && t.GetSeccompMode() != criu_core.SeccompMode_filter {
		return nil
	}
	if t.GetSeccompMode() != criu_core.SeccompMode_filter || t.SeccompFilter == nil {
		return forbidden("it has no filter of system calls, and the container has")
	}

	found := a.Filter == nil
	at := t.GetSeccompFilter()
	for range len(i.filters) {
		if at >= uint32(len(i.filters)) {
			break
		}
		f := i.filters[at]
		var own uint32
		if a.Filter != nil {
			own = a.Filter.Flags
			found = found || bytes.Equal(f.GetFilter(), a.Filter.Prog)
		}
		// Others would give somebody the calls to decide, or allow speculation.
		if f.GetFlags()&^(own|unix.SECCOMP_FILTER_FLAG_LOG|unix.SECCOMP_FILTER_FLAG_TSYNC) != 0 {
			return forbidden("a filter of system calls has flags %#x", f.GetFlags())
		}
		if f.Prev == nil {
			if !found {
				return forbidden("it does not have the container's filter of system calls, or that of another version of crisp")
			}
			return nil
		}
		at = f.GetPrev()
	}
	return wrong("its filters of system calls have no end")
}

// checkCreds checks whose rights a thread has.
func checkCreds(a *Allowed, c *creds.CredsEntry) error {
	may := a.mayGain()
	if !a.NoNewPrivileges || may.Has("CAP_SETUID") {
		// A program may make its process anybody's.
	} else if ids := []uint32{c.GetUid(), c.GetEuid(), c.GetSuid(), c.GetFsuid()}; slices.ContainsFunc(ids, func(id uint32) bool { return id != a.UID }) {
		return forbidden("it is of users %d, and the container of %d", ids, a.UID)
	}
	if a.NoNewPrivileges && !may.Has("CAP_SETGID") {
		groups := append(slices.Clone(c.GetGroups()), c.GetGid(), c.GetEgid(), c.GetSgid(), c.GetFsgid())
		for _, g := range groups {
			if g != a.GID && !slices.Contains(a.Groups, g) {
				return forbidden("it is of group %d, and the container is not", g)
			}
		}
	}

	for _, set := range []struct {
		name string
		has  []uint32
		may  capability.Set
	}{
		{"bounding", c.GetCapBnd(), a.Bounding}, {"permitted", c.GetCapPrm(), may}, {"effective", c.GetCapEff(), may},
		{"inheritable", c.GetCapInh(), may}, {"ambient", c.GetCapAmb(), may},
	} {
		if err := checkCapabilities(set.has, set.may); err != nil {
			return fmt.Errorf("its %s set: %w", set.name, err)
		}
	}

	// SECBIT_KEEP_CAPS needs no capability; all of them take something away.
	const keepCaps, known = 1 << 4, 1<<8 - 1
	switch {
	case a.NoNewPrivileges && c.GetNoNewPrivs() != 1:
		return forbidden("it may get privileges by programs, and the container may not")
	case c.GetSecbits()&^keepCaps != 0 && !may.Has("CAP_SETPCAP"), c.GetSecbits()&^known != 0:
		return forbidden("its securebits are %#x", c.GetSecbits())
	case c.GetLsmSockcreate() != "" || len(c.GetApparmorData()) > 0:
		return forbidden("it has labels for sockets, or profiles")
	case a.Labelled && c.GetLsmProfile() == "":
		return forbidden("it has no label, and the container has")
	}
	return nil
}

func checkCapabilities(words []uint32, may capability.Set) error {
	var has capability.Set
	for n, word := range words {
		if n > 1 && word != 0 {
			return forbidden("capabilities that no kernel has")
		}
		if n < 2 {
			has |= capability.Set(word) << (32 * n)
		}
	}
	if more := has &^ may; more != 0 {
		return forbidden("%v, which the container has not", more.Names())
	}
	return nil
}

// checkNamespaces checks that all processes are in the same namespaces, and that these
// are the container's own, or the node's, as the container's spec has it.
func (i *Inventory) checkNamespaces(a *Allowed) error {
	of := func(ids *criu_core.TaskKobjIdsEntry) map[specs.LinuxNamespaceType]uint32 {
		return map[specs.LinuxNamespaceType]uint32{
			specs.PIDNamespace: ids.GetPidNsId(), specs.NetworkNamespace: ids.GetNetNsId(), specs.IPCNamespace: ids.GetIpcNsId(),
			specs.UTSNamespace: ids.GetUtsNsId(), specs.MountNamespace: ids.GetMntNsId(), specs.UserNamespace: ids.GetUserNsId(),
			specs.CgroupNamespace: ids.GetCgroupNsId(), specs.TimeNamespace: ids.GetTimeNsId(),
		}
	}
	node, first := of(i.entry.GetRootIds()), of(i.processes[0].ids)
	if i.processes[0].isGone() {
		return wrong("the first process has ended")
	}
	for kind, id := range first {
		// What is not said, CRIU may take for either.
		if (id == 0 || node[kind] == 0) && kind != specs.TimeNamespace {
			return wrong("they do not say which %s namespace the container has, or the node", kind)
		}
		if own := id != node[kind]; own != a.Namespaces[kind] && kind != specs.TimeNamespace {
			return forbidden("the container has its own %s namespace: %t, and the images: %t", kind, a.Namespaces[kind], own)
		}
	}
	for _, p := range i.processes {
		for kind, id := range of(p.ids) {
			if id != first[kind] && !(p.isGone() && id == 0) {
				return forbidden("process %d is in a %s namespace of its own, which crisp does not restore", p.GetPid(), kind)
			}
		}
	}

	if i.hasIPC && !a.Namespaces[specs.IPCNamespace] {
		return forbidden("they have settings of the node's IPC namespace")
	}
	for _, e := range i.networks {
		// With the key alone it has nothing of its own: the namespace is given.
		if e.GetExtKey() != "net" || len(e.GetDefConf())+len(e.GetAllConf())+len(e.GetDefConf4())+len(e.GetAllConf4())+len(e.GetDefConf6())+
			len(e.GetAllConf6())+len(e.GetNsids())+len(e.GetUnixConf())+len(e.GetIpv4Sysctl()) > 0 || !a.Namespaces[specs.NetworkNamespace] {
			return forbidden("they have a network namespace that is not the pod's")
		}
	}
	if len(i.networks) == 0 && a.Namespaces[specs.NetworkNamespace] || len(i.networks) > 1 {
		return forbidden("they have %d network namespaces, and the container one", len(i.networks))
	}
	for _, e := range i.pidspaces {
		if e.GetExtKey() != "" {
			return forbidden("they are of a PID namespace that others have, too")
		}
	}
	return i.checkUsers(a)
}

// checkUsers checks that users are translated as those of the container.
func (i *Inventory) checkUsers(a *Allowed) error {
	if !a.Namespaces[specs.UserNamespace] {
		if len(i.users) > 0 {
			return forbidden("they have a user namespace, and the container has none")
		}
		return nil
	}
	if len(i.users) != 1 {
		return forbidden("they have %d user namespaces, and the container one", len(i.users))
	}
	if !sameMaps(i.users[0].GetUidMap(), a.UIDs) || !sameMaps(i.users[0].GetGidMap(), a.GIDs) {
		return forbidden("their user namespace has other users of the node than the container")
	}
	return nil
}

func sameMaps(images []*userns.UidGidExtent, want []specs.LinuxIDMapping) bool {
	return slices.EqualFunc(images, want, func(e *userns.UidGidExtent, m specs.LinuxIDMapping) bool {
		return e.GetFirst() == m.ContainerID && e.GetLowerFirst() == m.HostID && e.GetCount() == m.Size
	})
}

// checkMemory checks that what is to be filled fits into the container.
func (i *Inventory) checkMemory(a *Allowed) error {
	if a.Memory > 0 && i.bytes > a.Memory {
		return forbidden("%d bytes of memory, and the limit is %d", i.bytes, a.Memory)
	}
	for _, m := range i.memfds {
		if m.GetHugetlbFlag() != 0 {
			return forbidden("memory %.100q in huge pages", m.GetName())
		}
	}
	// The default of fs.pipe-max-size.
	const maxPipe = 1 << 20
	for _, p := range i.pipes {
		if p.GetSize() > maxPipe && !a.mayGain().Has("CAP_SYS_RESOURCE") {
			return forbidden("a pipe of %d bytes, and the maximum is %d", p.GetSize(), maxPipe)
		}
	}
	return nil
}
