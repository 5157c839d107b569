package own

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
)

// Types of the reference plugins that are served, for configurations that name them:
// with the same results, as far as a configuration asks for what this package has.
// Everything else in it is refused.
const (
	TypeBridge    = "bridge"
	TypeHostLocal = ipamHostLocal // as the address management of a bridge
	TypePortmap   = "portmap"
	TypeLoopback  = "loopback"
	TypeBandwidth = "bandwidth"
	TypeTuning    = "tuning"
	TypeFirewall  = "firewall"
)

// ReferenceTypes lists them.
func ReferenceTypes() []string {
	return []string{TypeBandwidth, TypeBridge, TypeFirewall, TypeHostLocal, TypeLoopback, TypePortmap, TypeTuning}
}

const (
	// referenceBridge is the bridge's name if a configuration has none.
	referenceBridge = "cni0"
	// referenceMTU is the kernel's choice.
	referenceMTU = 1500
)

// bridgeConf is a configuration of the reference plugin bridge.
type bridgeConf struct {
	shared
	Bridge           string          `json:"bridge"`
	Gateway          bool            `json:"isGateway"`
	DefaultGateway   bool            `json:"isDefaultGateway"`
	ForceAddress     bool            `json:"forceAddress"`
	Masquerade       bool            `json:"ipMasq"`
	MasqueradeBy     *string         `json:"ipMasqBackend"`
	MTU              int             `json:"mtu"`
	Hairpin          bool            `json:"hairpinMode"`
	Promiscuous      bool            `json:"promiscMode"`
	VLAN             int             `json:"vlan"`
	Trunk            json.RawMessage `json:"vlanTrunk"`
	PreserveVLAN     *bool           `json:"preserveDefaultVlan"`
	CheckSpoofing    bool            `json:"macspoofchk"`
	Duplicates       bool            `json:"enabledad"`
	WithoutInterface bool            `json:"disableContainerInterface"`
	Isolation        bool            `json:"portIsolation"`
	IPAM             ipam            `json:"ipam"`
}

// portmapConf is a configuration of the reference plugin portmap.
type portmapConf struct {
	shared
	SNAT         *bool    `json:"snat"`
	MasqAll      bool     `json:"masqAll"`
	MarkBit      *int     `json:"markMasqBit"`
	MarkChain    *string  `json:"externalSetMarkChain"`
	Backend      *string  `json:"backend"`
	ConditionsV4 []string `json:"conditionsV4"`
	ConditionsV6 []string `json:"conditionsV6"`
}

// reference is what a configuration of the reference plugins asks for besides that of
// crisp-net.
type reference struct {
	// gateway says that the bridge has the gateway's address, and the node forwards.
	gateway bool
	// defaultRoute adds default routes.
	defaultRoute bool
	// isolated keeps the pods of the bridge from each other.
	isolated bool
}

// read reads the configuration of a call.
func read(call Call) (*conf, error) {
	switch call.Type {
	case TypeBridge:
		return readBridge(call.Config, true)
	case TypePortmap:
		return readPortmap(call.Config, true)
	case TypeLoopback:
		return readLoopback(call.Config)
	default:
		return parse(call.Config)
	}
}

// readLoosely reads the configuration of something that is to be removed.
func readLoosely(call Call) (*conf, error) {
	switch call.Type {
	case TypeBridge:
		return readBridge(call.Config, false)
	case TypePortmap:
		return readPortmap(call.Config, false)
	default:
		return parseLoosely(call.Config)
	}
}

// ValidateReference returns an error if a configuration of a reference plugin is not one
// that is served on this node. chain are those of the plugins before it.
func (p *Plugin) ValidateReference(kind string, config []byte, chain [][]byte) error {
	call := Call{Type: kind, Config: config}
	var err error
	switch kind {
	case TypeBandwidth:
		_, err = readBandwidth(config, true)
	case TypeTuning:
		_, err = readTuning(call, true)
	case TypeFirewall:
		err = p.validateFirewall(config, chain)
	default:
		_, err = read(call)
	}
	return err
}

// decode reads JSON, without unknown fields if it is to be strict.
func decode(data []byte, into any, strict bool) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(into); err != nil {
		return undecoded(err, "crisp serves this plugin, and refuses what it does not know of its configuration; take the plugin from builtin_plugins to use its program")
	}
	return nil
}

// refuse returns an error for the first field that asks for what is not served.
func refuse(fields ...struct {
	name string
	set  bool
}) error {
	for _, f := range fields {
		if f.set {
			return invalid(fmt.Errorf("%s is not served by crisp; take the plugin from builtin_plugins to use its program", f.name))
		}
	}
	return nil
}

// field is a field of a configuration and whether it asks for something.
func field(name string, set bool) struct {
	name string
	set  bool
} {
	return struct {
		name string
		set  bool
	}{name, set}
}

// one reports whether a value is absent or one of those allowed.
func oneOf(value *string, allowed ...string) bool {
	return value == nil || slices.Contains(allowed, *value)
}

func readBridge(data []byte, strict bool) (*conf, error) {
	b := &bridgeConf{}
	if err := decode(data, b, strict); err != nil {
		return nil, err
	}
	c := &conf{shared: b.shared}
	c.Mode, c.Bridge, c.MTU, c.Masquerade, c.Promiscuous = ModeBridge, b.Bridge, b.MTU, b.Masquerade, b.Promiscuous
	c.Hairpin, c.IPAM = &b.Hairpin, b.IPAM
	if c.Bridge == "" {
		c.Bridge = referenceBridge
	}
	if c.MTU == 0 {
		c.MTU = referenceMTU
	}
	if c.IPAM.Routes == nil {
		c.IPAM.Routes = []*types.Route{} // no default route of itself
	}
	c.reference = &reference{gateway: b.Gateway || b.DefaultGateway, defaultRoute: b.DefaultGateway, isolated: b.Isolation}
	if !strict {
		c.normalize()
		return c, nil
	}

	err := refuse(
		field("forceAddress", b.ForceAddress), field("vlan", b.VLAN != 0), field("vlanTrunk", len(b.Trunk) > 0),
		field("macspoofchk", b.CheckSpoofing), field("enabledad", b.Duplicates), field("disableContainerInterface", b.WithoutInterface),
		field("ipMasqBackend", !oneOf(b.MasqueradeBy, "", "iptables", "nftables")),
	)
	if err != nil {
		return nil, err
	}
	if b.Promiscuous && b.Hairpin {
		return nil, invalid(errors.New("cannot set hairpin mode and promiscuous mode at the same time"))
	}
	if err := c.check(); err != nil {
		return nil, invalid(err)
	}
	return c, nil
}

func readPortmap(data []byte, strict bool) (*conf, error) {
	m := &portmapConf{}
	if err := decode(data, m, strict); err != nil {
		return nil, err
	}
	c := &conf{shared: m.shared, Mode: ModeBridge, reference: &reference{}}
	if !strict {
		return c, nil
	}

	err := refuse(
		field("snat: false", m.SNAT != nil && !*m.SNAT), field("masqAll", m.MasqAll), field("markMasqBit", m.MarkBit != nil),
		field("externalSetMarkChain", m.MarkChain != nil), field("conditionsV4", len(m.ConditionsV4) > 0),
		field("conditionsV6", len(m.ConditionsV6) > 0), field("backend", !oneOf(m.Backend, "", "iptables", "nftables")),
	)
	if err != nil {
		return nil, err
	}
	return c, c.checked()
}

func readLoopback(data []byte) (*conf, error) {
	s := &shared{}
	if err := decode(data, s, true); err != nil {
		return nil, err
	}
	return &conf{shared: *s}, s.checked()
}

// checked is [shared.checkShared] for configurations of which that is the last check.
func (s *shared) checked() error {
	if err := s.checkShared(); err != nil {
		return invalid(err)
	}
	return nil
}
