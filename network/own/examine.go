package own

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"crisp/network/own/lease"
	"crisp/network/own/link"
	"crisp/network/own/rules"
)

// Level is how bad a finding is.
type Level string

// A finding is fine, or may matter, or keeps pods from working.
const (
	LevelOK   Level = "OK"
	LevelWarn Level = "WARN"
	LevelFail Level = "FAIL"
)

// Finding is a result of [Plugin.Examine].
type Finding struct {
	Level Level `json:"level"`
	// About is "node", "network NAME", "pod NAMESPACE/NAME" or "table FAMILY NAME".
	About string `json:"about"`
	Text  string `json:"text"`
	// Advice is what to do about it.
	Advice string `json:"advice,omitempty"`
	// Repaired says that it was repaired since it was found.
	Repaired bool `json:"repaired,omitempty"`
}

// Examination says what to examine.
type Examination struct {
	// Configs are the configurations for new pods.
	Configs [][]byte
	// Attached returns the calls of CHECK for all attachments. It is called again after
	// what the node has was listed.
	Attached func() ([]Call, error)
	// Hold keeps an attachment from being detached until release is called. It returns
	// false if there is none, or it is being attached or detached.
	Hold func(ctx context.Context, id string) (release func(), ok bool)
	// Private reports whether only this daemon uses a directory of leases.
	Private func(dataDir string) bool
	// Foreign reports whether a pod that is not among the calls was attached by another
	// runtime, or by this one with other plugins.
	Foreign func(network, id string) bool
	// Sole says that no other runtime, and no other daemon, has pods in the networks.
	// Otherwise only what is in a private directory certainly belongs to no pod.
	Sole bool
	// Repair repairs what can be repaired without a risk.
	Repair bool
}

// examiner is an examination under way.
type examiner struct {
	*Plugin
	Examination
	host  *link.Host
	table *rules.Table // nil if the kernel has none, or it cannot be asked
	// unfiltered is why there is no table.
	unfiltered error

	findings []Finding
	// confs are the configurations, each once.
	confs []*conf
	// used are those that a pod was attached with.
	used map[*conf]bool
	// owners are the attachments by address.
	owners map[string]string
	// intact counts the attachments without a finding, and skipped those not examined.
	intact, skipped int
}

// Examine compares the node with what its attachments should have, and says what is
// wrong and what to do. It may run beside a daemon.
func (p *Plugin) Examine(ctx context.Context, e Examination) ([]Finding, error) {
	x := &examiner{Plugin: p, Examination: e, owners: map[string]string{}, used: map[*conf]bool{}}
	var err error
	if x.host, err = p.links(); err != nil {
		return nil, err
	}
	calls, err := e.Attached()
	if err != nil {
		return nil, err
	}
	x.collect(calls)

	x.openTable()
	x.examineNode(ctx)
	for _, c := range x.confs {
		x.examineNetwork(ctx, c)
	}
	x.examineBridges(calls)
	for _, call := range calls {
		if err := context.Cause(ctx); err != nil {
			return x.findings, fmt.Errorf("examine network: %w", err)
		}
		x.examinePod(ctx, call)
	}
	if len(calls) > 0 {
		x.ok("pods", "%d of %d are attached as they should be; %d are being attached or detached", x.intact, len(calls), x.skipped)
	}

	if err := x.examineOrphans(ctx); err != nil {
		return x.findings, err
	}
	x.examineForeign(calls)
	return x.findings, nil
}

// Collect removes what belongs to no attachment, as far as that is certain, and returns
// what it found.
func (p *Plugin) Collect(ctx context.Context, e Examination) ([]Finding, error) {
	e.Repair = true
	x := &examiner{Plugin: p, Examination: e, owners: map[string]string{}, used: map[*conf]bool{}}
	calls, err := e.Attached()
	if err != nil || len(calls) == 0 && len(e.Configs) == 0 {
		return nil, err
	}
	if x.host, err = p.links(); err != nil {
		return nil, err
	}

	x.collect(calls)
	x.openTable()
	err = errors.Join(x.examineOrphans(ctx), p.retire(x.host)) // what a killed daemon has retired
	return slices.DeleteFunc(x.findings, func(f Finding) bool { return f.Level == LevelOK }), err
}

func (x *examiner) ok(about, format string, args ...any) {
	x.add(Finding{Level: LevelOK, About: about, Text: fmt.Sprintf(format, args...)})
}

func (x *examiner) add(f Finding) { x.findings = append(x.findings, f) }

// mend adds a finding that repair, if wanted, does away with.
func (x *examiner) mend(f Finding, repair func() error) {
	if x.Repair {
		if err := repair(); err != nil {
			f.Text += fmt.Sprintf(" (not repaired: %v)", err)
		} else {
			f.Repaired, f.Advice = true, ""
		}
	}
	x.add(f)
}

const (
	adviceRepair = "crisp network check --repair"
	adviceSole   = "if no other runtime has that pod: crisp network check --repair --sole"
)

// collect parses the configurations and finds attachments with the same address.
func (x *examiner) collect(calls []Call) {
	for _, data := range x.Configs {
		c, err := parse(data)
		if err != nil {
			x.add(Finding{Level: LevelFail, About: "configuration", Text: err.Error(), Advice: "correct it: no pod can be attached"})
			continue
		}
		x.confs = append(x.confs, c)
	}

	for _, call := range calls {
		c, err := parseLoosely(call.Config)
		if err != nil {
			continue // reported with the pod
		}
		at := slices.IndexFunc(x.confs, c.sameNetwork)
		if at < 0 {
			at, x.confs = len(x.confs), append(x.confs, c)
		}
		x.used[x.confs[at]] = true

		known, _ := c.previous(call.IfName)
		for _, addr := range known {
			key := c.Name + " " + addr.String()
			if other, taken := x.owners[key]; taken {
				x.add(Finding{
					Level: LevelFail, About: podOf(call), Text: fmt.Sprintf("it has the address %s, which %s has as well", addr, other),
					Advice: "recreate one of the pods",
				})
			}
			x.owners[key] = podOf(call)
		}
	}
}

// sameNetwork reports whether two configurations need the same of the node.
func (c *conf) sameNetwork(other *conf) bool {
	a, b := c.network(), other.network()
	return a.Same(&b) && c.Mode == other.Mode && c.Bridge == other.Bridge && c.IPAM.DataDir == other.IPAM.DataDir
}

// ruling returns the configuration whose rules apply to the subnets of another: a subnet
// has those of one only. The present one comes before those of older pods.
func (x *examiner) ruling(c *conf) *conf {
	for _, other := range x.confs {
		overlaps := func(s netip.Prefix) bool { return slices.ContainsFunc(other.subnets(), s.Overlaps) }
		if x.used[other] && other.filtered() && slices.ContainsFunc(c.subnets(), overlaps) {
			return other
		}
	}
	return c
}

// podOf names the pod of a call.
func podOf(call Call) string {
	// Arguments that ADD accepted are valid; without them, there is no name.
	if args, err := parseArgs(call.Args); err == nil && args.K8S_POD_NAME != "" {
		return "pod " + string(args.K8S_POD_NAMESPACE) + "/" + string(args.K8S_POD_NAME)
	}
	return "pod " + call.ID
}

// openTable opens the packet filter.
func (x *examiner) openTable() {
	var err error
	if x.table, err = x.filter(); err == nil {
		// The first question tells whether the kernel has it.
		_, err = x.table.HasNetwork(rules.Network{})
	}
	if err == nil {
		return
	}
	x.table, x.unfiltered = nil, err
	if slices.ContainsFunc(x.confs, func(c *conf) bool { return c.filtered() || c.Capabilities["portMappings"] }) {
		x.add(Finding{Level: LevelFail, About: "node", Text: err.Error(), Advice: "without it there are no host ports and no masquerading"})
	}
}

// families reports which families some networks have.
func families(confs []*conf) (v4, v6 bool) {
	for _, c := range confs {
		for _, s := range c.subnets() {
			v4, v6 = v4 || s.Addr().Is4(), v6 || !s.Addr().Is4()
		}
	}
	return v4, v6
}

// examineNode examines what all networks need.
func (x *examiner) examineNode(context.Context) {
	v4, v6 := families(x.confs)
	if !v4 && !v6 {
		return
	}
	err := x.host.CheckForwards(v4, v6)
	if err == nil {
		x.ok("node", "it forwards packets")
		return
	}
	x.mend(Finding{Level: LevelFail, About: "node", Text: err.Error(), Advice: adviceRepair + ", and look for what changed it, in /etc/sysctl.d for example"},
		func() error { return x.host.Forward(v4, v6) })
}

// examineNetwork examines what the pods of a network share.
func (x *examiner) examineNetwork(ctx context.Context, c *conf) {
	about := "network " + c.Name
	bridge := c.Bridge
	if c.Mode == ModeRouted {
		bridge = ""
	}
	if err := x.host.Collides(c.subnets(), bridge); err != nil {
		x.add(Finding{Level: LevelFail, About: about, Text: err.Error(), Advice: "remove that route, or configure another subnet and recreate the pods"})
	}

	// Its rules are made with its first pod.
	if x.table == nil || !x.used[c] || x.ruling(c) != c || !c.filtered() {
		return
	}
	present, err := x.table.HasNetwork(c.network())
	if err == nil && present {
		x.ok(about, "the packet filter has its rules")
		return
	}
	text := fmt.Sprintf("the table %s has lost its rules: another program has flushed the packet filter", rules.TableName)
	if err != nil {
		text = err.Error()
	}
	x.mend(Finding{Level: LevelFail, About: about, Text: text, Advice: adviceRepair},
		func() error { return x.table.AddNetwork(ctx, c.network()) })
}

// examinePod examines one attachment.
func (x *examiner) examinePod(ctx context.Context, call Call) {
	release, ok := x.Hold(ctx, call.ID)
	if !ok {
		x.skipped++
		return
	}
	defer release()
	found := len(x.findings)
	x.examineHeld(ctx, call)
	if len(x.findings) == found {
		x.intact++
	}
}

// examineHeld examines an attachment that is held.
func (x *examiner) examineHeld(ctx context.Context, call Call) {
	about := podOf(call)
	fail := func(err error, advice string) {
		x.add(Finding{Level: LevelFail, About: about, Text: err.Error(), Advice: advice})
	}
	const recreate = "recreate the pod"

	a, err := x.recorded(call)
	if err != nil {
		fail(err, recreate)
		return
	}
	if a.pod, err = openPod(call); err != nil {
		x.add(Finding{Level: LevelWarn, About: about, Text: "its network namespace is gone: it has ended, or the node was restarted", Advice: "it is detached when the pod is removed"})
		return
	}
	defer a.pod.Close()

	x.examineLeases(ctx, a)
	if !x.describeRecorded(a, fail) {
		return
	}
	if err := x.host.CheckNode(a.wire); err != nil {
		x.mend(Finding{Level: LevelFail, About: about, Text: err.Error(), Advice: adviceRepair + "; if that does not help, recreate the pod"},
			func() error { return x.host.Mend(a.wire) })
	}
	x.examineLimits(a)
	if err := x.host.CheckPod(a.pod, a.wire); err != nil {
		fail(err, "recreate the pod: what happens in its namespace is not undone")
	}

	if x.table == nil || len(a.ports) == 0 {
		return
	}
	published, err := x.table.Published(a.published())
	if err == nil && published {
		return
	}
	text := fmt.Sprintf("the table %s has lost its host ports", rules.TableName)
	if err != nil {
		text = err.Error()
	}
	x.mend(Finding{Level: LevelFail, About: about, Text: text, Advice: adviceRepair}, func() error { return x.publish(ctx, a) })
}

// examineLimits examines the bandwidth limits of an attachment.
func (x *examiner) examineLimits(a *attachment) {
	end, queue, limits := link.Name(a.call.ID, a.call.IfName), link.QueueName(a.call.ID, a.call.IfName), a.conf.Runtime.Bandwidth
	err := x.host.CheckShape(end, queue, limits.ingress(), limits.egress())
	if err == nil || !x.host.Exists(end) {
		return // or reported with the interface
	}
	x.mend(Finding{Level: LevelFail, About: podOf(a.call), Text: err.Error(), Advice: adviceRepair}, func() error {
		_, err := x.host.Shape(end, queue, limits.ingress(), limits.egress())
		return err
	})
}

// publish makes the host ports of an attachment again.
func (x *examiner) publish(ctx context.Context, a *attachment) error {
	if err := x.table.AddNetwork(ctx, x.ruling(a.conf).network()); err != nil {
		return err
	}
	return expose(ctx, x.host, x.table, a.published())
}

// describeRecorded fills in the wire, with a bridge that exists. It returns false if
// there is none.
func (x *examiner) describeRecorded(a *attachment, fail func(error, string)) bool {
	err := a.describe(a.hardware)
	if err == nil && a.conf.Mode == ModeBridge {
		a.wire.Bridge, err = x.host.Index(a.conf.Bridge)
	}
	if err != nil {
		fail(err, "recreate the pod, if that is not repaired with the network")
	}
	return err == nil
}

// examineLeases looks for the leases of an attachment.
func (x *examiner) examineLeases(ctx context.Context, a *attachment) {
	o := lease.Owner{ID: a.call.ID, IfName: a.call.IfName}
	leased, err := lease.Look(a.conf.IPAM.DataDir, a.conf.Name).Of(o, a.addrs())
	lost := slices.DeleteFunc(a.addrs(), func(addr netip.Addr) bool { return slices.Contains(leased, addr) })
	if err == nil && len(lost) == 0 {
		return
	}
	text := fmt.Sprintf("no lease says that it has %s, which may be assigned to another pod", lost)
	if err != nil {
		text = err.Error()
	}
	x.mend(Finding{Level: LevelFail, About: podOf(a.call), Text: text, Advice: adviceRepair}, func() error {
		err := x.withLeases(ctx, a.conf, func(s *lease.Store) error { return s.Claim(ctx, o, lost) })
		if errors.Is(err, lease.ErrTaken) {
			return fmt.Errorf("%w; recreate the pod", err)
		}
		return err
	})
}
