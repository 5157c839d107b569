package plan

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Exec returns the plan that runs another process in a container, whose first
// process is held as "pidfd". s is the container's spec.
func Exec(s *specs.Spec, p *specs.Process, o Options) (*Plan, error) {
	plan, err := execPlan(s, p, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	return plan, nil
}

func execPlan(s *specs.Spec, p *specs.Process, o Options) (*Plan, error) {
	if err := checkSpec(s); err != nil {
		return nil, err
	}
	ns, err := parseNamespaces(s.Linux.Namespaces)
	if err != nil {
		return nil, err
	}

	c := &process{builder: newBuilder(o.Name), s: s, p: inherit(s.Process, p), o: o, ns: ns}
	// Only children of a process that joins these namespaces are in them.
	c.exposed = ns.flags()&(unix.CLONE_NEWPID|unix.CLONE_NEWTIME) != 0
	if err := c.check(); err != nil {
		return nil, err
	}

	c.hide()
	if a := c.p.ExecCPUAffinity; a != nil {
		if err := c.affinity("first CPUs", a.Initial); err != nil {
			return nil, err
		}
	}

	if o.Gate {
		c.wait("wait for the keeper")
	}
	c.joinCgroup(o.CgroupV2, o.CgroupTasks)

	if a := c.p.ExecCPUAffinity; a != nil {
		if err := c.affinity("CPUs", a.Final); err != nil {
			return nil, err
		}
	}

	c.privileged()
	c.join()
	c.session()
	c.keyring()

	// The namespaces' root is the working directory, too.
	c.root = here()
	if o.Terminal {
		c.open("open terminal", "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, noLinks, regMaster)
		c.openSlave()
	}

	return c.plan, c.execute()
}

// inherit completes an exec process with the container's settings.
func inherit(first, p *specs.Process) *specs.Process {
	if p == nil {
		return nil
	}
	own := *p
	if own.Rlimits == nil {
		own.Rlimits = first.Rlimits
	}
	if own.OOMScoreAdj == nil {
		own.OOMScoreAdj = first.OOMScoreAdj
	}
	return &own
}

// join enters all namespaces of the container at once, or none.
func (c *process) join() {
	flags := c.ns.flags()
	if c.o.Waiting && c.ns.joins(specs.PIDNamespace) {
		flags &^= unix.CLONE_NEWPID
		c.step("join namespace pid", unix.SYS_SETNS, c.namespace(c.ns.joined[specs.PIDNamespace]), num(uint64(unix.CLONE_NEWPID)))
	}
	c.step("join namespaces "+flagNames(flags), unix.SYS_SETNS, c.held("pidfd"), num(flags))
	if flags&unix.CLONE_NEWUSER != 0 {
		c.becomeRoot()
	}
}
