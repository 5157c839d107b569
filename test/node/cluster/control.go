package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

const (
	// startTime is how long a program may take to be ready, on a busy machine.
	startTime = 90 * time.Second
	// ServerIP is the address of the first node, which has the control plane.
	ServerIP = "192.168.77.1"
	// DNS is the address of the pods' DNS server; at first there is none.
	DNS      = "10.96.0.10"
	server   = "https://" + ServerIP + ":6443"
	services = "10.96.0.0/16"
	firstIP  = "10.96.0.1" // the API server's service
	nodeLink = "node0"

	// PodsV4 and PodsV6 are the networks of pods in a cluster of both families.
	PodsV4 = "10.244.0.0/16"
	PodsV6 = "fd00:10:244::/48"

	serverIPv6 = "fd00:192:168:77::1"
	servicesV6 = "fd00:10:96::/112"
)

// Options configure a cluster. The zero value is one of IPv4 only, whose nodes have no
// pod CIDRs.
type Options struct {
	// Dual gives the cluster both families, and each node parts of [PodsV4] and [PodsV6]
	// as its pod CIDRs.
	Dual bool
}

// Cluster is a control plane and its nodes.
type Cluster struct {
	// Dir is its directory.
	Dir string
	// Nodes are in the order in which they joined.
	Nodes []*Node

	opt    Options
	cache  lab.Cache
	config string // kubectl's
	ca     *authority
	procs  []*lab.Process // in the order of their start
}

// New starts a control plane without nodes in dir, which it creates.
func New(ctx context.Context, dir string, opt Options) (_ *Cluster, err error) {
	c := &Cluster{Dir: dir, opt: opt}
	if c.cache, err = lab.Find(); err != nil {
		return nil, err
	}
	if _, err := c.cache.Kubernetes("kubelet"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close(context.WithoutCancel(ctx)))
		}
	}()

	if err := os.MkdirAll(c.path("pki"), 0o755); err != nil {
		return nil, err
	}
	if err := AddAddress(); err != nil {
		return nil, err
	}
	if opt.Dual {
		if err := addIPv6(); err != nil {
			return nil, err
		}
	}

	if err := c.writePKI(); err != nil {
		return nil, err
	}
	c.config = c.pki("admin.conf")
	return c, c.startControlPlane(ctx)
}

// Find returns an existing cluster, given its administrator's configuration.
// kubectl caches its state in dir.
func Find(dir, config string) (*Cluster, error) {
	cache, err := lab.Find()
	return &Cluster{Dir: dir, cache: cache, config: config}, err
}

func (c *Cluster) path(name string) string { return filepath.Join(c.Dir, name) }
func (c *Cluster) pki(name string) string  { return c.ca.file(name) }

// AddAddress gives the namespace an address that is not loopback's, as pods
// must be able to reach the API server at it.
func AddAddress() error {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: nodeLink}}
	err := netlink.LinkAdd(link)
	if err == nil {
		address := &net.IPNet{IP: net.ParseIP(ServerIP), Mask: net.CIDRMask(24, 32)}
		err = errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: address}), netlink.LinkSetUp(link))
	}
	if err == nil {
		// Programs refuse to listen on a node without a default route.
		err = netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP("192.168.77.254")})
	}
	if err != nil {
		return fmt.Errorf("add link %s: %w", nodeLink, err)
	}

	return nil
}

// addIPv6 adds an address of IPv6 to that of AddAddress.
func addIPv6() error {
	link, err := netlink.LinkByName(nodeLink)
	if err == nil {
		address := &net.IPNet{IP: net.ParseIP(serverIPv6), Mask: net.CIDRMask(64, 128)}
		// Nobody else can have it, so that it need not be asked for.
		err = netlink.AddrAdd(link, &netlink.Addr{IPNet: address, Flags: unix.IFA_F_NODAD})
	}
	if err == nil {
		// A packet to a service is routed before it gets another address.
		err = netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP("fd00:192:168:77::254")})
	}
	if err != nil {
		return fmt.Errorf("add address of IPv6 to %s: %w", nodeLink, err)
	}
	return nil
}

// RemoveAddress undoes AddAddress.
func RemoveAddress() error { return lab.RemoveLink(nodeLink) }

// writePKI creates the certificates of the control plane.
func (c *Cluster) writePKI() (err error) {
	if c.ca, err = newAuthority(c.path("pki")); err != nil {
		return err
	}
	if _, err := c.ca.newKey("service-accounts"); err != nil {
		return err
	}

	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	return errors.Join(
		c.ca.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"}, names, net.IPv4(127, 0, 0, 1), net.ParseIP(ServerIP), net.ParseIP(firstIP)),
		c.ca.issue("apiserver-kubelet", pkix.Name{CommonName: "apiserver", Organization: []string{"system:masters"}}, nil),
		c.ca.client("admin", server, "admin", "system:masters"),
		c.ca.client("controller-manager", server, "system:kube-controller-manager"),
		c.ca.client("scheduler", server, "system:kube-scheduler"),
		c.ca.client("proxy", server, "system:kube-proxy"),
	)
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	serviceRange, controllers := services, []string{}
	if c.opt.Dual {
		serviceRange += "," + servicesV6
		controllers = []string{
			"--allocate-node-cidrs", "--cluster-cidr=" + PodsV4 + "," + PodsV6, "--service-cluster-ip-range=" + serviceRange,
			"--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64",
		}
	}
	etcd, err := c.start(nil, "etcd", "--data-dir="+c.path("etcd"), "--unsafe-no-fsync", "--log-level=warn")
	if err != nil {
		return err
	}

	if err := etcd.WaitUntil(ctx, pace.Scale(startTime), func() bool { return c.answers("http://127.0.0.1:2379/health") }); err != nil {
		return err
	}
	api, err := c.start(nil, "kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--advertise-address="+ServerIP, "--secure-port=6443",
		"--cert-dir="+c.path("pki"), "--tls-cert-file="+c.pki("apiserver.crt"), "--tls-private-key-file="+c.pki("apiserver.key"),
		"--client-ca-file="+c.pki("ca.crt"), "--kubelet-client-certificate="+c.pki("apiserver-kubelet.crt"), "--kubelet-client-key="+c.pki("apiserver-kubelet.key"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+c.pki("service-accounts.pub"), "--service-account-signing-key-file="+c.pki("service-accounts.key"),
		"--service-cluster-ip-range="+serviceRange, "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--kubelet-preferred-address-types=InternalIP", "--allow-privileged", "--profiling=false")
	if err != nil {
		return err
	}

	if err := api.WaitUntil(ctx, pace.Scale(startTime), func() bool { return c.answers(server + "/readyz") }); err != nil {
		return err
	}
	_, err = c.start(nil, "kube-controller-manager", append(controllers,
		"--kubeconfig="+c.pki("controller-manager.conf"), "--leader-elect=false", "--use-service-account-credentials", "--root-ca-file="+c.pki("ca.crt"), "--cert-dir="+c.path("pki"),
		"--service-account-private-key-file="+c.pki("service-accounts.key"), "--profiling=false")...)
	if err != nil {
		return err
	}

	_, err = c.start(nil, "kube-scheduler", "--kubeconfig="+c.pki("scheduler.conf"), "--leader-elect=false", "--cert-dir="+c.path("pki"), "--profiling=false")
	return err
}

// start runs one of Kubernetes' programs under others, such as nsenter; Close
// stops it.
func (c *Cluster) start(below []string, program string, args ...string) (*lab.Process, error) {
	binary, err := c.cache.Kubernetes(program)
	if err != nil {
		return nil, err
	}
	command := append(append(slices.Clone(below), binary), args...)
	p, err := lab.StartProcess(c.path(fmt.Sprintf("%s-%d.log", program, len(c.procs))), nil, command[0], command[1:]...)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	c.procs = append(c.procs, p)
	return p, nil
}

// answers reports whether a server is healthy.
func (c *Cluster) answers(url string) bool {
	// The server's identity does not matter here.
	client := http.Client{Timeout: pace.Scale(2 * time.Second), Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

// Logs are the ends of the logs of all programs, for a test that failed.
func (c *Cluster) Logs() string {
	var text string
	files, _ := filepath.Glob(c.path("*.log")) // the pattern is valid
	for _, n := range c.Nodes {
		files = append(files, n.path("kubelet.log"))
	}

	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			text += err.Error() + "\n"
			continue
		}
		text += fmt.Sprintf("===== %s\n%s\n", file, data[max(0, len(data)-4000):])
	}

	return text
}

// Close stops the nodes and the control plane. What they leak is in the error.
func (c *Cluster) Close(ctx context.Context) error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.close(ctx))
	}
	for i := len(c.procs) - 1; i >= 0; i-- {
		errs = append(errs, c.procs[i].Stop())
	}
	return errors.Join(append(errs, RemoveAddress(), os.RemoveAll(c.Dir))...)
}
