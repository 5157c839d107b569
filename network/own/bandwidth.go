package own

import (
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"crisp/network/own/link"
)

// bandwidthConf is a configuration of the reference plugin bandwidth. Limits in it come
// before those of the runtime.
type bandwidthConf struct {
	shared
	bandwidth
}

func readBandwidth(data []byte, strict bool) (*bandwidthConf, error) {
	c := &bandwidthConf{}
	if err := decode(data, c, strict); err != nil || !strict {
		return c, err
	}
	if err := c.bandwidth.check(); err != nil {
		return nil, invalid(err)
	}
	return c, c.checked()
}

// limits are those that apply to the pod of a call.
func (c *bandwidthConf) limits() bandwidth {
	if c.bandwidth != (bandwidth{}) {
		return c.bandwidth
	}
	return c.Runtime.Bandwidth
}

// check refuses what the reference plugin refuses.
func (b bandwidth) check() error {
	for name, l := range map[string]link.Limit{"ingress": b.ingress(), "egress": b.egress()} {
		switch {
		case (l.Rate == 0) != (l.Burst == 0):
			return fmt.Errorf("%sRate and %sBurst: one needs the other", name, name)
		case l.Burst/8 >= math.MaxUint32:
			return fmt.Errorf("%sBurst %d is not less than 4 GiB, in bits", name, l.Burst)
		}
	}
	return nil
}

func (b bandwidth) ingress() link.Limit {
	return link.Limit{Rate: b.IngressRate, Burst: b.IngressBurst}
}
func (b bandwidth) egress() link.Limit { return link.Limit{Rate: b.EgressRate, Burst: b.EgressBurst} }

// queueName is the name that the reference plugin gives to the device in which it queues
// what a pod sends.
func (c *bandwidthConf) queueName(id string) string {
	const prefix, length = "bwp", 15
	sum := sha512.Sum512([]byte(c.Name + id))
	return (prefix + hex.EncodeToString(sum[:]))[:length]
}

// bandwidth answers calls of the plugin bandwidth.
func (p *Plugin) bandwidth(call Call) ([]byte, error) {
	switch call.Command {
	case "ADD":
		return p.addLimits(call)

	case "DEL":
		c, err := readBandwidth(call.Config, false)
		if err != nil {
			return nil, err
		}
		host, err := p.links()
		if err != nil {
			return nil, err
		}
		return nil, p.remove(host, c.queueName(call.ID), nil)

	case "CHECK":
		return nil, p.checkLimits(call)
	default:
		return nil, nil
	}
}

// limited returns what a call of bandwidth is about, and the node's end of the pod's pair,
// which is "" if there are no limits.
func (p *Plugin) limited(call Call) (c *bandwidthConf, result *types100.Result, host *link.Host, end string, err error) {
	fail := func(err error) (*bandwidthConf, *types100.Result, *link.Host, string, error) {
		return nil, nil, nil, "", err
	}
	if c, err = readBandwidth(call.Config, true); err != nil {
		return fail(err)
	}
	if result, err = c.previousResult(); err != nil {
		return fail(err)
	}
	if err := c.limits().check(); err != nil {
		return fail(invalid(err))
	}
	if c.limits() == (bandwidth{}) {
		return c, result, nil, "", nil
	}

	pod, err := openPod(call)
	if err != nil {
		return fail(err)
	}
	defer pod.Close()
	if host, err = p.links(); err != nil {
		return fail(err)
	}
	if end, err = host.Peer(pod, call.IfName); err != nil {
		return fail(err)
	}
	if end == "" || !slices.ContainsFunc(result.Interfaces, func(i *types100.Interface) bool { return i.Sandbox == "" && i.Name == end }) {
		return fail(invalid(fmt.Errorf("bandwidth is limited at the node's end of a pair (veth), and the plugin before it made none for %s", call.IfName)))
	}
	return c, result, host, end, nil
}

func (p *Plugin) addLimits(call Call) ([]byte, error) {
	c, result, host, end, err := p.limited(call)
	if err != nil {
		return nil, err
	}
	if end == "" {
		return c.Previous, nil
	}
	queue, limits := c.queueName(call.ID), c.limits()
	mac, err := host.Shape(end, queue, limits.ingress(), limits.egress())
	if err != nil {
		return nil, err
	}
	if mac != nil {
		result.Interfaces = append(result.Interfaces, &types100.Interface{Name: queue, Mac: mac.String()})
	}
	return printed(result, c.CNIVersion)
}

func (p *Plugin) checkLimits(call Call) error {
	c, _, host, end, err := p.limited(call)
	if err != nil || end == "" {
		return err
	}
	limits := c.limits()
	return host.CheckShape(end, c.queueName(call.ID), limits.ingress(), limits.egress())
}

// previousResult reads the result of the plugins before, without which a chained plugin
// has nothing to do.
func (s *shared) previousResult() (*types100.Result, error) {
	if !s.hasPrevious() {
		return nil, invalid(fmt.Errorf("%s must follow another plugin in its chain", s.Type))
	}
	known, err := version.NewResult(s.CNIVersion, s.Previous)
	if err != nil {
		return nil, invalid(fmt.Errorf("prevResult: %w", err))
	}

	result, err := types100.GetResult(known)
	if err != nil {
		return nil, invalid(fmt.Errorf("prevResult: %w", err))
	}
	// A null in JSON.
	for _, i := range result.Interfaces {
		if i == nil {
			return nil, invalid(errors.New("prevResult: an interface is null"))
		}
	}
	for _, ip := range result.IPs {
		if ip == nil {
			return nil, invalid(errors.New("prevResult: an address is null"))
		}
	}
	return result, nil
}
