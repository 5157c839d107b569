package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// object is JSON, which YAML parsers accept too.
type object = map[string]any

// Node is a machine of the cluster: crisp, kubelet and kube-proxy.
type Node struct {
	// Name is the node's, IP its address, and IPv6 that of the other family, or "".
	Name, IP, IPv6 string
	// Lab has the node's daemon.
	Lab *lab.Lab
	// Config is kubelet's configuration, and Env is added to its environment.
	// Changes take effect at its next start.
	Config map[string]any
	Env    []string
	// Flags are added to kubelet's.
	Flags []string

	cluster *Cluster
	dir     string
	below   []string // the command that starts its programs
	kubelet *lab.Process
	proxy   *lab.Process
}

// AddNode starts a node on the daemon of l, with further settings and flags for
// its kubelet: in this namespace, or in that of m if it is not nil. The node is
// stopped with the cluster, the lab after it.
func (c *Cluster) AddNode(ctx context.Context, name string, l *lab.Lab, m *Machine, settings map[string]any, flags ...string) (*Node, error) {
	n := &Node{Name: name, IP: ServerIP, Lab: l, Flags: flags, cluster: c, dir: c.path(name)}
	if m != nil {
		n.IP, n.below = m.IP, m.Below()
	}
	if c.opt.Dual {
		n.IPv6 = serverIPv6
		if m != nil {
			n.IPv6 = mateIPv6
		}
	}

	c.Nodes = append(c.Nodes, n)
	if err := n.prepare(); err != nil {
		return nil, fmt.Errorf("prepare node %s: %w", name, err)
	}

	n.Config = n.defaults()
	maps.Copy(n.Config, settings)
	if err := n.StartKubelet(ctx); err != nil {
		return nil, err
	}
	return n, n.startProxy(ctx)
}

// IPs are its addresses.
func (n *Node) IPs() []string {
	if n.IPv6 == "" {
		return []string{n.IP}
	}
	return []string{n.IP, n.IPv6}
}

// Below is the command that starts a program on the node, empty for this machine.
func (n *Node) Below() []string { return slices.Clone(n.below) }

func (n *Node) path(name string) string { return filepath.Join(n.dir, name) }

// Manifests is the directory of the node's static pods.
func (n *Node) Manifests() string { return n.path("manifests") }

// Logs is the directory of the pods' logs.
func (n *Node) Logs() string { return n.path("logs/pods") }

// podSlice is kubelet's slice for pods with the systemd driver.
const podSlice = "kubepods.slice"

// bySystemd reports whether the cgroup driver is systemd.
func (n *Node) bySystemd() bool { return n.Lab.CgroupDriver() == "systemd" }

// cgroupRoot is the cgroup below which kubelet creates those of pods: with
// systemd the test has the whole machine.
func (n *Node) cgroupRoot() string {
	if n.bySystemd() {
		return "/"
	}
	return "/" + n.Lab.Name + "/" + n.Name
}

// prepare creates the directories and cgroups that kubelet expects.
func (n *Node) prepare() error {
	for _, name := range []string{"kubelet", "logs/pods", "manifests", "plugins", "empty"} {
		if err := os.MkdirAll(n.path(name), 0o755); err != nil {
			return err
		}
	}

	// A separate mount stays shared with crisp although all others of kubelet's
	// are private. It is made private first, so that it has its own peer group.
	for _, flags := range []uintptr{unix.MS_BIND, unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount(n.path("kubelet"), n.path("kubelet"), "", flags, ""); err != nil {
			return fmt.Errorf("mount kubelet's directory: %w", err)
		}
	}

	if err := os.WriteFile(n.path("resolv.conf"), []byte("nameserver "+DNS+"\n"), 0o644); err != nil {
		return err
	}
	if !n.bySystemd() {
		if err := MakeGroups(n.cgroupRoot()); err != nil {
			return err
		}
	}

	return n.cluster.ca.client(n.Name, server, "system:node:"+n.Name, "system:nodes")
}

// MakeGroups creates a cgroup, and its parents, in every hierarchy.
func MakeGroups(group string) error {
	roots := inventory.Hierarchies()
	if len(roots) == 0 {
		return errors.New("create cgroups: no hierarchy is mounted")
	}

	for _, root := range roots {
		dir := root
		for name := range strings.SplitSeq(strings.Trim(group, "/"), "/") {
			above := dir
			dir = filepath.Join(dir, name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}

			// A new cgroup of version 1 has no CPUs and memory nodes; one of
			// version 2 has no controllers enabled.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if text, err := os.ReadFile(filepath.Join(above, file)); err == nil && filepath.Base(root) == "cpuset" {
					if err := os.WriteFile(filepath.Join(dir, file), text, 0o644); err != nil {
						return err
					}
				}
			}

			if text, err := os.ReadFile(filepath.Join(above, "cgroup.controllers")); err == nil && len(text) > 1 {
				on := "+" + strings.Join(strings.Fields(string(text)), " +")
				if err := os.WriteFile(filepath.Join(above, "cgroup.subtree_control"), []byte(on), 0o644); err != nil {
					return err
				}
			}
		}
	}

	return nil
}

// defaults is kubelet's configuration: the usual one with shorter intervals,
// and with eviction thresholds that other data on the disk does not reach.
func (n *Node) defaults() object {
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": n.Lab.Endpoint,
		"healthzBindAddress":       n.IP, "cgroupDriver": n.Lab.CgroupDriver(), "cgroupRoot": n.cgroupRoot(), "failCgroupV1": false,
		"failSwapOn": false, "clusterDNS": []string{DNS}, "clusterDomain": "cluster.local", "resolvConf": n.path("resolv.conf"),
		"podLogsDir": n.path("logs/pods"), "staticPodPath": n.Manifests(), "volumePluginDir": n.path("plugins"),
		"authentication": object{"anonymous": object{"enabled": false}, "x509": object{"clientCAFile": n.cluster.pki("ca.crt")}},
		"authorization":  object{"mode": "Webhook"},
		"maxPods":        200, "serializeImagePulls": false, "registryPullQPS": 0, "eventRecordQPS": 0, "kubeAPIQPS": 200, "kubeAPIBurst": 400,
		"evictionHard":                object{"memory.available": "50Mi", "nodefs.available": "200Mi", "nodefs.inodesFree": "1%", "imagefs.available": "200Mi"},
		"imageGCHighThresholdPercent": 99, "imageGCLowThresholdPercent": 98, "imageMinimumGCAge": "1s",
		"containerLogMaxSize": "100Ki", "containerLogMaxFiles": 3, "containerLogMonitorInterval": "3s",
		"syncFrequency": "5s", "fileCheckFrequency": "1s", "nodeStatusUpdateFrequency": "2s",
		"enforceNodeAllocatable": []string{"pods"},
	}
}

// OwnSysctls is a shell script that runs "$@", kubelet, in a copy of this mount
// namespace, in which the sysctls it sets are files in the directory $0. Mounts
// below mounts other than the root are shared with this namespace.
const OwnSysctls = `set -e
mount --make-private /
mount --make-rprivate /proc
for key in vm/overcommit_memory kernel/panic kernel/panic_on_oops; do
	file=$0/$(basename $key)
	cat /proc/sys/$key >$file
	mount --bind $file /proc/sys/$key
done
` + run

const run = `exec "$@"`

// ownDirectories mounts private directories over paths that kubelet's
// configuration cannot change.
const ownDirectories = `mount --bind $0/logs /var/log
mount --bind $0/empty /var/lib
`

// StartKubelet starts kubelet and waits until it is healthy.
func (n *Node) StartKubelet(ctx context.Context) error {
	text, err := json.MarshalIndent(n.Config, "", "  ")
	if err != nil {
		return err
	}

	if err := os.WriteFile(n.path("kubelet.json"), text, 0o644); err != nil {
		return err
	}
	binary, err := n.cluster.cache.Kubernetes("kubelet")
	if err != nil {
		return err
	}

	command := append(slices.Clone(n.below), "unshare", "--mount", "--propagation", "unchanged", "sh", "-c", strings.TrimSuffix(OwnSysctls, run)+ownDirectories+run, n.dir, binary,
		"--config="+n.path("kubelet.json"), "--kubeconfig="+n.cluster.pki(n.Name+".conf"), "--hostname-override="+n.Name,
		"--node-ip="+strings.Join(n.IPs(), ","), "--root-dir="+n.path("kubelet"), "--cert-dir="+n.path("kubelet/pki"))
	command = append(command, n.Flags...)
	n.kubelet, err = lab.StartProcess(n.path("kubelet.log"), n.Env, command[0], command[1:]...)
	if err != nil {
		return fmt.Errorf("start kubelet: %w", err)
	}

	well := func() bool { return n.cluster.answers("http://" + n.IP + ":10248/healthz") }
	if err := n.kubelet.WaitUntil(ctx, pace.Scale(startTime), well); err != nil {
		return fmt.Errorf("start kubelet: %w", err)
	}
	return nil
}

// StopKubelet stops kubelet. Pods keep running.
func (n *Node) StopKubelet() error { return n.kubelet.Stop() }

func (n *Node) startProxy(ctx context.Context) (err error) {
	config := object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection": object{"kubeconfig": n.cluster.pki("proxy.conf")}, "hostnameOverride": n.Name, "mode": "nftables", "healthzBindAddress": n.IP + ":10256",
		// A pod that reaches another through a Service must get the reply on
		// the same path, although the bridge has a shorter one.
		"nftables": object{"masqueradeAll": true},
		// These limits are machine-wide.
		"conntrack": object{"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}

	text, err := json.Marshal(config)
	if err != nil {
		return err
	}

	if err := os.WriteFile(n.path("proxy.json"), text, 0o644); err != nil {
		return err
	}
	if n.proxy, err = n.cluster.start(n.below, "kube-proxy", "--config="+n.path("proxy.json")); err != nil {
		return err
	}
	if err := n.proxy.WaitUntil(ctx, pace.Scale(startTime), func() bool { return n.cluster.answers("http://" + n.IP + ":10256/livez") }); err != nil {
		return fmt.Errorf("start kube-proxy: %w", err)
	}

	return nil
}

// Leave stops a node before the cluster.
func (n *Node) Leave(ctx context.Context) error {
	c := n.cluster
	c.Nodes = slices.DeleteFunc(c.Nodes, func(other *Node) bool { return other == n })
	err := n.proxy.Stop()
	return errors.Join(err, n.close(ctx))
}

// close stops kubelet and removes what it leaves by design: its pods, whose
// containers are removed with the lab, and their volumes.
func (n *Node) close(ctx context.Context) error {
	var errs []error
	if n.kubelet != nil {
		errs = append(errs, n.kubelet.Stop())
	}

	errs = append(errs, n.Lab.RemovePods(ctx))
	if n.bySystemd() {
		if out, err := exec.CommandContext(ctx, "systemctl", "stop", podSlice).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w: %s", podSlice, err, out))
		}
	}

	for _, point := range inventory.MountsBelow(n.dir) {
		if err := unix.Unmount(point, 0); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", strings.TrimPrefix(point, n.dir), err))
		}
	}

	return errors.Join(errs...)
}
