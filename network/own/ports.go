package own

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/network/own/link"
	"crisp/network/own/rules"
)

// expose makes the host ports of a pod work, also for clients that have sent before.
func expose(ctx context.Context, host *link.Host, table *rules.Table, pod rules.Pod) error {
	alive := func(owner string) bool { return host.Exists(interfaceOf(owner)) }
	if err := table.Publish(ctx, pod, alive); err != nil {
		return err
	}
	return forgetUDP(host, pod.Ports)
}

// conceal removes the host ports that were listed of an owner.
func conceal(host *link.Host, table *rules.Table, listed *rules.Elements, owner string) error {
	ports, err := table.Remove(listed, owner)
	if err != nil {
		return err
	}
	return forgetUDP(host, ports)
}

// sweep removes the host ports of all owners that are not valid.
func (p *Plugin) sweep(host *link.Host, valid func(owner string) bool) error {
	var ports []rules.Port
	table, err := p.filter()
	if err == nil {
		ports, err = table.Sweep(valid)
	}
	if errors.Is(err, rules.ErrUnsupported) {
		return nil // nor could there be any
	}
	if err != nil {
		return err
	}
	return forgetUDP(host, ports)
}

// forgetUDP drops what the node remembers of the UDP ports among some.
func forgetUDP(host *link.Host, ports []rules.Port) error {
	var list []link.UDPPort
	for _, port := range ports {
		if port.Protocol == unix.IPPROTO_UDP {
			list = append(list, link.UDPPort{Addr: port.HostAddr, Port: port.HostPort})
		}
	}
	return host.ForgetUDP(list)
}

// interfaceOf returns the host's interface of an element's owner.
func interfaceOf(owner string) string { return owner[strings.LastIndexByte(owner, '/')+1:] }
