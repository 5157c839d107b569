//go:build node

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/node/cluster"
	"crisp/test/testkit"
	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// TestKubeadm sets up a node with kubeadm, as in docs/kubernetes.md: crisp runs
// the control plane as static pods.
func TestKubeadm(t *testing.T) {
	l := testkit.Daemon(t, lab.Options{Routed: true})
	k := newKubeadm(t, l)
	out := k.run("kubeadm", "init", "--config="+k.path("kubeadm.yaml"), "--ignore-preflight-errors="+ignored)
	t.Logf("kubeadm init:\n%s", out)

	c, err := cluster.Find(k.dir, "/etc/kubernetes/admin.conf")
	if err != nil {
		t.Fatal(err)
	}

	w := &world{Cluster: c, node: &cluster.Node{Name: "node-1", IP: cluster.ServerIP, Lab: l}}
	s := &space{t, w, "default"}
	s.wait("condition=Ready", "node/node-1")
	s.expect("the node", s.kubectl("get", "node", "-o", "wide"), "control-plane", "crisp://")
	s.cluster("taint", "node", "node-1", "node-role.kubernetes.io/control-plane-")

	working := t.Run("cluster", func(t *testing.T) {
		s := w.space(t)
		(&space{t, w, "kube-system"}).rolledOut("daemonset/kube-proxy", "deployment/coredns")
		s.webByName()
	})
	if !working {
		return
	}

	s.eventually("all pods of the control plane are ready", func() error {
		got := s.cluster("-n", "kube-system", "get", "pods", "-o", `jsonpath={range .items[*]}{.status.containerStatuses[0].ready} {.status.containerStatuses[0].restartCount},{end}`)
		if n := strings.Count(got, "true 0,"); n != 7 || strings.Count(got, ",") != n {
			return errors.New(got)
		}
		return nil
	})

	k.run("kubeadm", "reset", "--force", "--cri-socket="+l.Endpoint)
	if left := inventory.Names("/etc/kubernetes/manifests"); len(left) > 0 {
		t.Errorf("kubeadm reset left %v", left)
	}
}

// webByName reaches a service by its name, from another pod.
func (s *space) webByName() {
	s.Helper()
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: AGNHOST, args: [netexec]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: AGNHOST, args: [pause]}]}
`)

	s.waitReady("web", "client")
	s.eventually("a service by its name", s.holds("web", "exec", "client", "--", "curl", "-s", "-m", "5", "http://web/hostname"))
}

// kubeadm is a machine that kubeadm may change: its directories are the test's,
// and a script stands in for systemd.
type kubeadm struct {
	*testing.T
	cluster.StandIns
	dir, bin string
}

// ignored are checks of the machine that do not concern the runtime; the last
// one refuses version 1 of cgroups.
const ignored = "Swap,NumCPU,Mem,SystemVerification"

// kubeadmConfig is what this machine requires. A real node needs only the
// socket.
const kubeadmConfig = `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: %[1]s}
nodeRegistration:
  name: node-1
  criSocket: %[2]s
  kubeletExtraArgs: [{name: node-ip, value: %[1]s}]
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: %[3]s
networking: {podSubnet: %[4]s}
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
nftables: {masqueradeAll: true}
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupRoot: %[5]s
volumePluginDir: /var/lib/kubelet/plugins
resolvConf: %[6]s
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 200Mi}
`

// kubeletUnit is the command of kubelet's unit in Kubernetes' packages.
const kubeletUnit = `. /var/lib/kubelet/kubeadm-flags.env
set -- %s --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS
`

func newKubeadm(t *testing.T, l *lab.Lab) *kubeadm {
	t.Helper()
	k := &kubeadm{T: t, dir: filepath.Join(t.TempDir(), "kubeadm")}
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}

	kubelet, err := cache.Kubernetes("kubelet")
	if errors.Is(err, lab.ErrNotMade) {
		testkit.Skip(t, "kubernetes", err.Error())
	}

	k.bin = filepath.Dir(kubelet)
	if k.StandIns, err = cluster.NewStandIns(k.dir); err != nil {
		t.Fatal(err)
	}
	if err := cluster.AddAddress(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.RemoveAddress(); err != nil {
			t.Error(err)
		}
	})

	k.mounts()
	k.configure(l, kubelet)
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(k.path("units/kubelet.service.log")) // kubelet may never have been started
			t.Logf("kubelet's log:\n%s", text[max(0, len(text)-8000):])
		}
		k.run("systemctl", "stop", "kubelet")
		if err := l.RemovePods(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})

	return k
}

// configure writes what an administrator does before kubeadm is run.
func (k *kubeadm) configure(l *lab.Lab, kubelet string) {
	k.Helper()
	group := "/" + l.Name + "/node-1"
	if err := cluster.MakeGroups(group); err != nil {
		k.Fatal(err)
	}

	version := strings.TrimSpace(k.run("kubeadm", "version", "--output=short"))
	for file, text := range map[string]string{
		"/proc/sys/net/ipv4/ip_forward":         "1", // of the test's network namespace
		"/etc/hosts":                            "127.0.0.1 localhost\n" + cluster.ServerIP + " node-1\n",
		k.path("kubeadm.yaml"):                  fmt.Sprintf(kubeadmConfig, cluster.ServerIP, l.Endpoint, version, l.Subnet(), group, k.path("resolv.conf")),
		k.path("resolv.conf"):                   "nameserver 192.0.2.1\n",
		k.path("units/kubelet.service.command"): fmt.Sprintf(kubeletUnit, kubelet),
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			k.Fatal(err)
		}
	}
}

func (k *kubeadm) path(name string) string { return filepath.Join(k.dir, name) }

// mounts mounts the test's directories over those that kubeadm and kubelet
// write to. /etc is a copy of the machine's, and /usr/lib has modules, which
// kube-proxy mounts and a machine may not have.
func (k *kubeadm) mounts() {
	k.Helper()
	for _, name := range []string{"lib/kubelet", "log", "etc", "etc.work", "usr-lib/modules", "usr-lib.work"} {
		if err := os.MkdirAll(k.path(name), 0o755); err != nil {
			k.Fatal(err)
		}
	}

	mount := func(source, target, kind string, flags uintptr, data string) {
		k.Helper()
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			k.Fatalf("mount %s: %v", target, err)
		}
		k.Cleanup(func() {
			for _, point := range append(inventory.MountsBelow(target), target) {
				if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
					k.Errorf("unmount %s: %v", point, err)
				}
			}
		})
	}

	for place, name := range map[string]string{"/etc": "etc", "/usr/lib": "usr-lib"} {
		mount("crisp-test", place, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", place, k.path(name), k.path(name+".work")))
	}
	mount(k.path("lib"), "/var/lib", "", unix.MS_BIND, "")
	mount(k.path("log"), "/var/log", "", unix.MS_BIND, "")
	mount("/var/lib/kubelet", "/var/lib/kubelet", "", unix.MS_BIND, "")
}

// run runs a program, which must succeed, and returns what it printed.
func (k *kubeadm) run(program string, args ...string) string {
	k.Helper()
	ctx, cancel := contextAfter(k.T)
	defer cancel()
	path := ""
	for _, dir := range []string{k.Bin, k.bin} {
		if _, err := os.Stat(filepath.Join(dir, program)); err == nil {
			path = filepath.Join(dir, program)
			break
		}
	}

	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Dir = k.Env(k.bin), k.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		k.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}
