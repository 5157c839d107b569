package plan

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var rlimitNumbers = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// RlimitNumber returns the kernel's number of a resource limit, "RLIMIT_NOFILE".
func RlimitNumber(name string) (n int, ok bool) {
	n, ok = rlimitNumbers[name]
	return n, ok
}

// spareFiles is a limit on open files above what a plan itself opens.
const spareFiles = 4096

// privileged makes settings that need the host's root and that children inherit.
func (c *process) privileged() {
	c.oomScore()
	if (c.userns() || c.exposed) && c.limit("RLIMIT_NPROC") != nil {
		// It can be lowered later, and would throttle the setup of the process.
		most := c.clampLimit("RLIMIT_NPROC", unix.RLIM_INFINITY)
		c.setLimit("raise RLIMIT_NPROC", "RLIMIT_NPROC", most, most)
	}
	if c.userns() {
		// Hard limits cannot be raised from inside.
		for _, l := range c.p.Rlimits {
			needed := l.Type == "RLIMIT_NOFILE"
			if hard := c.clampLimit(l.Type, l.Hard); l.Type != "RLIMIT_NPROC" && (hard > spareFiles || !needed) {
				c.setLimit("raise "+l.Type, l.Type, hard, hard)
			}
		}
	}

	c.ioPriority()
	c.scheduler()
	c.memoryPolicy()
}

func (c *process) oomScore() {
	if c.p.OOMScoreAdj == nil {
		return
	}
	score := *c.p.OOMScoreAdj
	if m := c.o.Machine.MinOOMScore; m != nil {
		score = max(score, *m)
	}
	c.writeFile(fmt.Sprintf("set oom_score_adj %d", score), "self/oom_score_adj", strconv.Itoa(score))
}

func (c *process) clampLimit(name string, v uint64) uint64 {
	if top, ok := c.o.Machine.HardLimits[name]; ok {
		return min(v, top)
	}
	return v
}

func (b *builder) setLimit(what, name string, soft, hard uint64) *Step {
	return b.step(what, unix.SYS_PRLIMIT64, zero(), num(rlimitNumbers[name]), data(words(soft, hard)), zero())
}

// limits comes after all steps that need the descriptors and memory of the
// setup, to which the limits must not apply.
func (c *process) limits() {
	if c.limit("RLIMIT_NOFILE") == nil {
		c.usualFiles()
	}
	for _, l := range c.p.Rlimits {
		if l.Type != "RLIMIT_NPROC" {
			hard := c.clampLimit(l.Type, l.Hard)
			c.setLimit("limit "+l.Type, l.Type, min(l.Soft, hard), hard)
		}
	}
}

// limitProcesses comes once the process has its user, whose processes are
// counted, and has forked for the last time.
func (c *process) limitProcesses() {
	if l := c.limit("RLIMIT_NPROC"); l != nil {
		hard := c.clampLimit(l.Type, l.Hard)
		s := c.setLimit("limit "+l.Type, l.Type, min(l.Soft, hard), hard)
		if c.exposed {
			c.pass(s)
		}
	}
}

// limit returns the last requested limit of a kind, nil for none.
func (c *process) limit(name string) *specs.POSIXRlimit {
	for i := range slices.Backward(c.p.Rlimits) {
		if c.p.Rlimits[i].Type == name {
			return &c.p.Rlimits[i]
		}
	}
	return nil
}

// usualFiles sets the default limit on open files.
func (b *builder) usualFiles() {
	b.step("limit RLIMIT_NOFILE as usual", unix.SYS_PRLIMIT64, zero(), num(unix.RLIMIT_NOFILE), Arg{Kind: ArgNoFile}, zero())
}

// checkLimits refuses unknown names, which would otherwise be taken for others.
func (c *process) checkLimits() error {
	for _, l := range c.p.Rlimits {
		if _, ok := rlimitNumbers[l.Type]; !ok {
			return fmt.Errorf("%w: resource limit %q", ErrSpec, l.Type)
		}
		if l.Soft > l.Hard {
			return fmt.Errorf("%w: soft %s is above the hard limit", ErrSpec, l.Type)
		}
	}

	if io := c.p.IOPriority; io != nil {
		if slices.Index(ioClasses, io.Class) < 0 {
			return fmt.Errorf("%w: I/O priority class %q", ErrSpec, io.Class)
		}
		if io.Priority < 0 || io.Priority > maxIOPriority {
			return fmt.Errorf("%w: I/O priority %d, want 0 to %d", ErrSpec, io.Priority, maxIOPriority)
		}
	}
	if s := c.p.Scheduler; s != nil {
		if slices.Index(schedPolicies, s.Policy) < 0 {
			return fmt.Errorf("%w: scheduler policy %q", ErrSpec, s.Policy)
		}
		for _, f := range s.Flags {
			if slices.Index(schedFlags, f) < 0 {
				return fmt.Errorf("%w: scheduler flag %q", ErrSpec, f)
			}
		}
	}

	if m := c.s.Linux.MemoryPolicy; m != nil {
		if slices.Index(memoryModes, m.Mode) < 0 {
			return fmt.Errorf("%w: memory policy %q", ErrSpec, m.Mode)
		}
		for _, f := range m.Flags {
			if memoryFlags[f] == 0 {
				return fmt.Errorf("%w: memory policy flag %q", ErrSpec, f)
			}
		}

		if _, err := parseList(m.Nodes); err != nil {
			return err
		}
	}

	return nil
}

// maxIOPriority is the lowest priority in a class: a larger number would reach into
// the bits of the class.
const maxIOPriority = 7

var ioClasses = []specs.IOPriorityClass{"", specs.IOPRIO_CLASS_RT, specs.IOPRIO_CLASS_BE, specs.IOPRIO_CLASS_IDLE}

func (c *process) ioPriority() {
	io := c.p.IOPriority
	if io == nil {
		return
	}
	const shift, whoProcess = 13, 1
	class := slices.Index(ioClasses, io.Class)
	c.step(fmt.Sprintf("I/O priority %s %d", io.Class, io.Priority), unix.SYS_IOPRIO_SET, num(whoProcess), zero(), num(class<<shift|io.Priority))
}

var (
	schedPolicies = []specs.LinuxSchedulerPolicy{
		specs.SchedOther, specs.SchedFIFO, specs.SchedRR, specs.SchedBatch, specs.SchedISO, specs.SchedIdle, specs.SchedDeadline,
	}
	schedFlags = []specs.LinuxSchedulerFlag{
		specs.SchedFlagResetOnFork, specs.SchedFlagReclaim, specs.SchedFlagDLOverrun, specs.SchedFlagKeepPolicy,
		specs.SchedFlagKeepParams, specs.SchedFlagUtilClampMin, specs.SchedFlagUtilClampMax,
	}
)

func (c *process) scheduler() {
	s := c.p.Scheduler
	if s == nil {
		return
	}

	var flags uint64
	for _, f := range s.Flags {
		flags |= 1 << slices.Index(schedFlags, f)
	}

	policy := slices.Index(schedPolicies, s.Policy)
	attr := words32(48, uint32(policy))
	attr = append(attr, words(flags)...)
	attr = append(attr, words32(uint32(s.Nice), uint32(s.Priority))...)
	attr = append(attr, words(s.Runtime, s.Deadline, s.Period)...)
	c.step("scheduler "+string(s.Policy), unix.SYS_SCHED_SETATTR, zero(), data(attr), zero())
}

var (
	memoryModes = []specs.MemoryPolicyModeType{
		specs.MpolDefault, specs.MpolPreferred, specs.MpolBind, specs.MpolInterleave, specs.MpolLocal,
		specs.MpolPreferredMany, specs.MpolWeightedInterleave,
	}
	memoryFlags = map[specs.MemoryPolicyFlagType]int{
		specs.MpolFNumaBalancing: 1 << 13, specs.MpolFRelativeNodes: 1 << 14, specs.MpolFStaticNodes: 1 << 15,
	}
)

func (c *process) memoryPolicy() {
	m := c.s.Linux.MemoryPolicy
	if m == nil {
		return
	}
	mode := slices.Index(memoryModes, m.Mode)
	for _, f := range m.Flags {
		mode |= memoryFlags[f]
	}
	nodes, _ := parseList(m.Nodes) // checked before
	c.step("memory policy "+string(m.Mode), unix.SYS_SET_MEMPOLICY, num(mode), data(words(nodes...)), num(64*len(nodes)+1))
}

// affinity pins the process to CPUs, a list such as "0-3,7".
func (b *builder) affinity(what, list string) error {
	if list == "" {
		return nil
	}
	mask, err := parseList(list)
	if err != nil {
		return err
	}
	b.step(what+" "+list, unix.SYS_SCHED_SETAFFINITY, zero(), num(8*len(mask)), data(words(mask...)))
	return nil
}

// maxListed bounds the numbers in a list of CPUs or memory nodes.
const maxListed = 8192

// parseList reads a list of numbers and ranges into a bit mask.
func parseList(list string) ([]uint64, error) {
	mask := make([]uint64, 1)
	if list == "" {
		return mask, nil
	}

	for _, part := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}

		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from > to || to >= maxListed {
			return nil, fmt.Errorf("%w: list of numbers %q", ErrSpec, list)
		}

		for n := from; n <= to; n++ {
			for int(n/64) >= len(mask) {
				mask = append(mask, 0)
			}
			mask[n/64] |= 1 << (n % 64)
		}
	}

	return mask, nil
}

// RlimitNumbers returns the numbers of the resources that have limits, by the
// runtime-spec's names for them.
func RlimitNumbers() map[string]int { return maps.Clone(rlimitNumbers) }
