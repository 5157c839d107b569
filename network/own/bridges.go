package own

import (
	"maps"
	"slices"

	"crisp/network/own/link"
)

// examineBridges examines the bridges of attachments, each once: whether they are there and
// up, and have the addresses that are the pods' gateways. It comes before the attachments,
// whose ports are repaired on a bridge that exists.
func (x *examiner) examineBridges(calls []Call) {
	bridges, networks := map[string]link.Bridge{}, map[string]string{}
	for _, call := range calls {
		a, err := x.recorded(call)
		if err != nil || a.conf.Mode != ModeBridge {
			continue // is reported with the pod
		}
		pod, err := openPod(call)
		if err != nil {
			continue // has ended, and may be of before a reboot
		}
		pod.Close()
		networks[a.conf.Bridge] = a.conf.Name
		bridges[a.conf.Bridge] = merged(bridges[a.conf.Bridge], a.bridgeOf())
	}

	for _, name := range slices.Sorted(maps.Keys(bridges)) {
		b, about := bridges[name], "network "+networks[name]
		if err := x.host.CheckBridge(b); err != nil {
			x.mend(Finding{Level: LevelFail, About: about, Text: err.Error(), Advice: adviceRepair}, func() error {
				if b.MTU == 0 {
					b.MTU = x.host.MTU()
				}
				_, err := x.host.EnsureBridge(b)
				return err
			})
			continue
		}
		x.ok(about, "the bridge %s is up and has its addresses", name)
	}
}

// merged is a bridge that serves the pods of two. The order of gateways is kept, by the
// first of which the bridge's hardware address is chosen.
func merged(b, other link.Bridge) link.Bridge {
	other.Promiscuous = other.Promiscuous || b.Promiscuous
	other.Group = max(other.Group, b.Group)
	gateways := slices.Clone(b.Gateways)
	for _, g := range other.Gateways {
		if !slices.Contains(gateways, g) {
			gateways = append(gateways, g)
		}
	}
	other.Gateways = gateways
	return other
}
