package own

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"crisp/network/own/lease"
	"crisp/network/own/link"
	"crisp/network/own/rules"
)

// State is what the node has of an attachment.
type State struct {
	// ID is the pod's, Namespace and Name are too, if they are known.
	ID        string `json:"id"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	// Network is the configuration's name, Mode its mode.
	Network string `json:"network"`
	Mode    string `json:"mode"`
	// Interface is the pod's, in the network namespace NetNS.
	Interface string    `json:"interface"`
	NetNS     string    `json:"netns"`
	Addresses []Address `json:"addresses"`
	// HostInterface is the node's end, which may be missing.
	HostInterface  string `json:"hostInterface"`
	HostPresent    bool   `json:"hostInterfacePresent"`
	AttachFinished bool   `json:"attachFinished"`
	// HostPorts are those in the packet filter: "tcp *:8080 > 10.77.0.2:80".
	HostPorts []string `json:"hostPorts"`
}

// Address is an address of a pod.
type Address struct {
	Address netip.Addr `json:"address"`
	// Leased is whether a lease says that the address is this attachment's.
	Leased bool `json:"leased"`
}

// Inspect returns what the node has of attachments, given the calls of CHECK for them.
// It changes nothing.
func (p *Plugin) Inspect(calls []Call) ([]State, error) {
	host, err := p.links()
	if err != nil {
		return nil, err
	}
	elements, err := p.elements()
	if err != nil {
		return nil, err
	}

	list := []State{}
	for _, call := range calls {
		c, err := parseLoosely(call.Config)
		if err != nil {
			return nil, fmt.Errorf("inspect attachment of %s: %w", call.ID, err)
		}
		s := State{
			ID: call.ID, Network: c.Name, Mode: c.Mode, Interface: call.IfName, NetNS: call.NetNS,
			HostInterface: link.Name(call.ID, call.IfName), Addresses: []Address{}, HostPorts: []string{},
		}
		// Arguments that ADD accepted are valid; without them, there is no name.
		if args, err := parseArgs(call.Args); err == nil {
			s.Namespace, s.Name = string(args.K8S_POD_NAMESPACE), string(args.K8S_POD_NAME)
		}
		s.HostPresent = host.Exists(s.HostInterface)
		for _, x := range elements.HostPorts(owner(c, call.ID, call.IfName)) {
			s.HostPorts = append(s.HostPorts, x.String())
		}
		slices.Sort(s.HostPorts)
		if err := s.readAddresses(c); err != nil {
			return nil, fmt.Errorf("inspect attachment of %s: %w", call.ID, err)
		}
		list = append(list, s)
	}
	return list, nil
}

// elements lists the host ports, none without a packet filter.
func (p *Plugin) elements() (*rules.Elements, error) {
	table, err := p.filter()
	if err == nil {
		var all *rules.Elements
		if all, err = table.List(); err == nil {
			return all, nil
		}
	}
	if errors.Is(err, rules.ErrUnsupported) {
		return &rules.Elements{}, nil
	}
	return nil, err
}

// readAddresses fills in the addresses of the result, or else those that are leased.
func (s *State) readAddresses(c *conf) error {
	known, _ := c.previous(s.Interface)
	s.AttachFinished = len(known) > 0
	leased, err := lease.Look(c.IPAM.DataDir, c.Name).Of(lease.Owner{ID: s.ID, IfName: s.Interface}, known)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	if len(known) == 0 {
		known = leased
	}
	for _, addr := range known {
		s.Addresses = append(s.Addresses, Address{addr, slices.Contains(leased, addr)})
	}
	return nil
}
