package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// RemoveFlannel removes the rules that flannel's daemon leaves when it ends: what it
// would masquerade is another network's then.
func (n *Node) RemoveFlannel(ctx context.Context) error {
	for _, table := range [][]string{{"ip", "flannel-ipv4"}, {"ip6", "flannel-ipv6"}} {
		command := append(append(n.Below(), "nft", "delete", "table"), table...)
		if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("remove flannel's rules on %s: %w: %s", n.Name, err, out)
		}
	}
	return nil
}

// StartFlannel starts flannel's daemon on the node of a cluster of both families. It
// routes between the nodes' pod CIDRs, and is ready when it has written the node's into
// a file, which is returned: the plugin reads it.
func (n *Node) StartFlannel(ctx context.Context, dir string) (file string, p *lab.Process, err error) {
	flannel, err := n.cluster.cache.Flannel()
	if err != nil {
		return "", nil, err
	}
	conf, err := json.Marshal(object{"Network": PodsV4, "EnableIPv6": true, "IPv6Network": PodsV6, "EnableNFTables": true, "Backend": object{"Type": "host-gw"}})
	if err != nil {
		return "", nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "net-conf.json"), conf, 0o644); err != nil {
		return "", nil, err
	}

	file = filepath.Join(dir, "subnet.env")
	command := append(n.Below(), filepath.Join(flannel, "flanneld"),
		"--kube-subnet-mgr", "--kubeconfig-file="+n.cluster.pki("admin.conf"), "--net-config-path="+filepath.Join(dir, "net-conf.json"),
		"--subnet-file="+file, "--ip-masq", "--iface="+n.IP)
	p, err = lab.StartProcess(filepath.Join(dir, "flanneld.log"), []string{"NODE_NAME=" + n.Name}, command[0], command[1:]...)
	if err != nil {
		return "", nil, fmt.Errorf("start flannel: %w", err)
	}

	ready := func() bool {
		_, err := os.Stat(file)
		return err == nil
	}
	if err := p.WaitUntil(ctx, pace.Scale(startTime), ready); err != nil {
		return "", p, fmt.Errorf("start flannel: %w", err)
	}
	return file, p, nil
}
