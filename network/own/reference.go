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
)

// ReferenceTypes lists them.
func ReferenceTypes() []string { return []string{TypeBridge, TypeHostLocal, TypeLoopback, TypePortmap} }

const (
	// referenceBridge is the bridge's name if a configuration has none.
	referenceBridge = "cni0"
	// referenceMTU is the kernel's choice.
	referenceMTU = 1500
)

// shared are the fields that every plugin's configuration may have.
type shared struct {
	CNIVersion   string               `json:"cniVersion"`
	Name         string               `json:"name"`
	Type         string               `json:"type"`
	Capabilities map[string]bool      `json:"capabilities"`
	DNS          types.DNS            `json:"dns"`
	Args         confArgs             `json:"args"`
	Previous     json.RawMessage      `json:"prevResult"`
	Runtime      runtimeConf          `json:"runtimeConfig"`
	Valid        []types.GCAttachment `json:"cni.dev/valid-attachments"`
	ValidToo     []types.GCAttachment `json:"cni.dev/attachments"`
}

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
// that is served.
func ValidateReference(kind string, config []byte) error {
	_, err := read(Call{Type: kind, Config: config})
	return err
}

// decode reads JSON, without unknown fields if it is to be strict.
func decode(data []byte, into any, strict bool) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(into); err != nil {
		return invalid(fmt.Errorf("%w (crisp serves this plugin, and refuses what it does not know of its configuration; take the plugin from builtin_plugins to use its program)", err))
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
	c := b.shared.conf()
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
	c := m.shared.conf()
	c.Mode, c.reference = ModeBridge, &reference{}
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
	return c, c.checkShared()
}

func readLoopback(data []byte) (*conf, error) {
	s := &shared{}
	if err := decode(data, s, true); err != nil {
		return nil, err
	}
	c := s.conf()
	return c, c.checkShared()
}

// conf returns a configuration with the shared fields.
func (s *shared) conf() *conf {
	return &conf{
		CNIVersion: s.CNIVersion, Name: s.Name, Type: s.Type, Capabilities: s.Capabilities, DNS: s.DNS, Args: s.Args, Previous: s.Previous,
		Runtime: s.Runtime, Valid: s.Valid, ValidToo: s.ValidToo,
	}
}

// checkShared validates the shared fields.
func (c *conf) checkShared() error {
	if !slices.Contains(versions, c.CNIVersion) {
		return invalid(fmt.Errorf("cniVersion %q is not one of %q", c.CNIVersion, versions))
	}
	for name, on := range c.Capabilities {
		if on && !slices.Contains(capabilities, name) {
			return invalid(fmt.Errorf("capability %q is not one of %q", name, capabilities))
		}
	}
	return nil
}

// hasPrevious reports whether there is a result of an earlier plugin.
func (c *conf) hasPrevious() bool { return len(c.Previous) > 0 && string(c.Previous) != "null" }
