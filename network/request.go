package network

import (
	"fmt"
	"math"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"crisp/network/cni"
)

// Capabilities, by the names of the CNI conventions.
const (
	capPortMappings = "portMappings"
	capBandwidth    = "bandwidth"
	capDNS          = "dns"
	capIPs          = "ips"
	capMAC          = "mac"
	capCgroupPath   = "cgroupPath"
	capAnnotations  = "io.kubernetes.cri.pod-annotations"
)

// Annotations of Kubernetes that limit a pod's bandwidth, and the range that
// kubelet accepts, in bits per second.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
	minBandwidth      = 1_000
	maxBandwidth      = 1_000_000_000_000_000
)

// cni converts the request for package cni.
func (a *Attachment) cni() (cni.Attachment, error) {
	capabilities, err := a.capabilities()
	if err != nil {
		return cni.Attachment{}, err
	}
	for what, value := range map[string]string{"name": a.Name, "namespace": a.Namespace, "uid": a.UID} {
		if strings.ContainsAny(value, ";=") {
			return cni.Attachment{}, fmt.Errorf("%w: %s %q of pod contains ; or =", ErrInvalid, what, value)
		}
	}
	return cni.Attachment{ID: a.ID, NetNS: a.NetNS, Args: a.args(), Capabilities: capabilities}, nil
}

// args returns the arguments by which plugins such as Calico identify a pod.
func (a *Attachment) args() [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", a.Namespace},
		{"K8S_POD_NAME", a.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", a.ID},
		{"K8S_POD_UID", a.UID},
	}
}

// capabilities returns the capability arguments that are not empty.
func (a *Attachment) capabilities() (map[string]any, error) {
	c := map[string]any{}
	mappings, err := a.portMappings()
	if err != nil {
		return nil, err
	}

	if len(mappings) > 0 {
		c[capPortMappings] = mappings
	}
	limits, err := a.bandwidth()
	if err != nil {
		return nil, err
	}

	if limits != (bandwidth{}) {
		c[capBandwidth] = limits
	}
	if d := a.DNS; d != nil {
		c[capDNS] = dns{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}

	if len(a.IPs) > 0 {
		c[capIPs] = a.IPs
	}
	if a.MAC != "" {
		c[capMAC] = a.MAC
	}
	if a.CgroupParent != "" {
		c[capCgroupPath] = a.CgroupParent
	}
	if len(a.Annotations) > 0 {
		c[capAnnotations] = a.Annotations
	}

	return c, nil
}

// The capability arguments, in the form that plugins expect.
type (
	portMapping struct {
		HostPort      int32  `json:"hostPort"`
		ContainerPort int32  `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP"`
	}
	bandwidth struct {
		IngressRate  uint64 `json:"ingressRate,omitempty"`
		IngressBurst uint64 `json:"ingressBurst,omitempty"`
		EgressRate   uint64 `json:"egressRate,omitempty"`
		EgressBurst  uint64 `json:"egressBurst,omitempty"`
	}
	dns struct {
		Servers  []string `json:"servers,omitempty"`
		Searches []string `json:"searches,omitempty"`
		Options  []string `json:"options,omitempty"`
	}
)

func (a *Attachment) portMappings() ([]portMapping, error) {
	var list []portMapping
	for _, m := range a.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		if !isPort(m.HostPort) || !isPort(m.ContainerPort) {
			return nil, fmt.Errorf("%w: port mapping %d to %d", ErrInvalid, m.HostPort, m.ContainerPort)
		}

		protocol := strings.ToLower(m.Protocol)
		switch protocol {
		case "":
			protocol = "tcp"
		case "tcp", "udp", "sctp":
		default:
			return nil, fmt.Errorf("%w: port mapping with protocol %q", ErrInvalid, m.Protocol)
		}

		if m.HostIP != "" {
			if _, err := netip.ParseAddr(m.HostIP); err != nil {
				return nil, fmt.Errorf("%w: port mapping: %w", ErrInvalid, err)
			}
		}
		list = append(list, portMapping{m.HostPort, m.ContainerPort, protocol, m.HostIP})
	}

	return list, nil
}

func isPort(n int32) bool { return 1 <= n && n <= math.MaxUint16 }

func (a *Attachment) bandwidth() (bandwidth, error) {
	var b bandwidth
	var err error
	if b.IngressRate, err = a.rate(ingressAnnotation); err != nil {
		return bandwidth{}, err
	}
	if b.EgressRate, err = a.rate(egressAnnotation); err != nil {
		return bandwidth{}, err
	}

	// The bandwidth plugin requires a burst; with the largest one, only the rate
	// limits.
	if b.IngressRate > 0 {
		b.IngressBurst = math.MaxUint32
	}
	if b.EgressRate > 0 {
		b.EgressBurst = math.MaxUint32
	}

	return b, nil
}

// rate parses a bandwidth annotation, in bits per second, 0 if there is none.
func (a *Attachment) rate(annotation string) (uint64, error) {
	text, ok := a.Annotations[annotation]
	if !ok {
		return 0, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("%w: annotation %s: %q: %w", ErrInvalid, annotation, text, err)
	}
	rate := q.Value()
	if rate < minBandwidth || rate > maxBandwidth {
		return 0, fmt.Errorf("%w: annotation %s: %q is not between 1k and 1P", ErrInvalid, annotation, text)
	}
	return uint64(rate), nil
}
