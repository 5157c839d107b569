package cluster

import (
	"fmt"
	"os"
	"path/filepath"

	"crisp/test/testkit/lab"
)

// ownPaths gives a program the paths at which kubelet and the sample device plugin meet,
// and a /run of its own.
const ownPaths = `set -e
mount --make-rprivate /
mount --bind $0/empty /var/lib
mount --bind "$1" /run
shift
` + run

// StartDevicePlugin starts Kubernetes' sample device plugin on the node. It writes its
// CDI specification into the directory cdi below dir.
func (n *Node) StartDevicePlugin(dir string) (*lab.Process, error) {
	if err := os.MkdirAll(filepath.Join(dir, "cdi"), 0o755); err != nil {
		return nil, err
	}
	below := append(append([]string(nil), n.below...), "env", "CDI_ENABLED=yes", "unshare", "--mount", "sh", "-c", ownPaths, n.dir, dir)
	return n.cluster.start(below, "sample-device-plugin")
}

// StartDriver starts the driver of Kubernetes' own tests of dynamic resource allocation
// on the node, with so many devices.
func (n *Node) StartDriver(cdi string, devices int) (*lab.Process, error) {
	if err := os.MkdirAll(n.path("kubelet/plugins/test-driver.cdi.k8s.io"), 0o755); err != nil {
		return nil, err
	}
	return n.cluster.start(
		n.below, "test-driver", "kubelet-plugin", "--kubeconfig="+n.cluster.pki("admin.conf"), "--node-name="+n.Name, "--cdi-dir="+cdi,
		"--plugin-registration-path="+n.path("kubelet/plugins_registry"), "--datadir="+n.path("kubelet/plugins"), fmt.Sprintf("--num-devices=%d", devices),
	)
}
