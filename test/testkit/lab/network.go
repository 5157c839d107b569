package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
)

// writeNetwork writes a CNI configuration to dir: a bridge, addresses from
// subnet, mapped ports. The plugins store their state in data.
func writeNetwork(dir, data, bridge, subnet string, masquerade bool) error {
	type object map[string]any
	conf := object{
		"cniVersion": "1.0.0",
		"name":       bridge,
		"plugins": []object{{
			"type": "bridge", "bridge": bridge,
			"isGateway": true, "ipMasq": masquerade, "hairpinMode": true,
			"ipam": object{
				"type": "host-local", "dataDir": data,
				"ranges": [][]object{{{"subnet": subnet}}},
				"routes": []object{{"dst": "0.0.0.0/0"}},
			},
		}, {
			"type": "portmap", "snat": true,
			"capabilities": object{"portMappings": true},
		}},
	}

	return writeConf(dir, bridge, conf)
}

// ownNetwork is writeNetwork for crisp's own network in a mode.
func ownNetwork(mode string) func(dir, data, bridge, subnet string, masquerade bool) error {
	return func(dir, data, bridge, subnet string, masquerade bool) error {
		type object map[string]any
		return writeConf(dir, bridge, object{
			"cniVersion": "1.1.0",
			"name":       bridge,
			"plugins": []object{{
				"type": "crisp-net", "mode": mode, "bridge": bridge, "ipMasq": masquerade,
				"capabilities": object{"portMappings": true, "bandwidth": true, "ips": true},
				"ipam":         object{"type": "host-local", "dataDir": data, "ranges": [][]object{{{"subnet": subnet}}}},
			}},
		})
	}
}

// noNetwork makes the directory only.
func noNetwork(dir, _, _, _ string, _ bool) error { return os.MkdirAll(dir, 0o755) }

// Configure installs a network configuration in a lab without one.
func (l *Lab) Configure(conf any) error { return writeConf(l.path("net.d"), l.Bridge(), conf) }

// IPAM is the directory in which plugins keep their leases.
func (l *Lab) IPAM() string { return l.path("ipam") }

func writeConf(dir, name string, conf any) error {
	text, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "10-"+name+".conflist"), append(text, '\n'), 0o644)
}

// RemoveLink removes a link, which may be missing.
func RemoveLink(name string) error {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}
