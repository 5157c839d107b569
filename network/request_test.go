package network

import (
	"encoding/json"
	"errors"
	"testing"
)

func TestCapabilities(t *testing.T) {
	for name, test := range map[string]struct {
		pod  Attachment
		want string
	}{
		"nothing": {Attachment{}, `{}`},
		"port mappings": {
			Attachment{PortMappings: []PortMapping{
				{"TCP", 80, 8080, ""}, {"", 81, 0, ""}, {"sctp", 82, 8082, "fd00::1"}, {"", 83, 8083, ""},
			}},
			`{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":""},` +
				`{"hostPort":8082,"containerPort":82,"protocol":"sctp","hostIP":"fd00::1"},` +
				`{"hostPort":8083,"containerPort":83,"protocol":"tcp","hostIP":""}]}`,
		},
		"only pod ports": {Attachment{PortMappings: []PortMapping{{"TCP", 80, 0, ""}}}, `{}`},
		"ingress": {
			Attachment{Annotations: map[string]string{"kubernetes.io/ingress-bandwidth": "10M"}},
			`{"bandwidth":{"ingressRate":10000000,"ingressBurst":4294967295},` +
				`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/ingress-bandwidth":"10M"}}`,
		},
		"both ways": {
			Attachment{Annotations: map[string]string{
				"kubernetes.io/ingress-bandwidth": "1Mi", "kubernetes.io/egress-bandwidth": "1k"}},
			`{"bandwidth":{"ingressRate":1048576,"ingressBurst":4294967295,"egressRate":1000,"egressBurst":4294967295},` +
				`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/egress-bandwidth":"1k","kubernetes.io/ingress-bandwidth":"1Mi"}}`,
		},
		"the rest": {
			Attachment{
				DNS: &DNS{Servers: []string{"1.2.3.4"}, Searches: []string{"a.b"}, Options: []string{"ndots:5"}},
				IPs: []string{"10.0.0.7/24"}, MAC: "02:00:00:00:00:01", CgroupParent: "/kubepods/x",
			},
			`{"cgroupPath":"/kubepods/x","dns":{"servers":["1.2.3.4"],"searches":["a.b"],"options":["ndots:5"]},` +
				`"ips":["10.0.0.7/24"],"mac":"02:00:00:00:00:01"}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := test.pod.cni()
			if err != nil {
				t.Fatal(err)
			}

			got, err := json.Marshal(c.Capabilities)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	bandwidth := func(text string) Attachment {
		return Attachment{Annotations: map[string]string{"kubernetes.io/egress-bandwidth": text}}
	}
	ports := func(m PortMapping) Attachment { return Attachment{PortMappings: []PortMapping{m}} }
	for name, pod := range map[string]Attachment{
		"bandwidth no number": bandwidth("fast"),
		"bandwidth empty":     bandwidth(""),
		"bandwidth zero":      bandwidth("0"),
		"bandwidth too small": bandwidth("999"),
		"bandwidth too large": bandwidth("1001T"),
		"bandwidth negative":  bandwidth("-5M"),
		"host port too large": ports(PortMapping{"TCP", 80, 65536, ""}),
		"host port negative":  ports(PortMapping{"TCP", 80, -1, ""}),
		"no container port":   ports(PortMapping{"TCP", 0, 80, ""}),
		"protocol":            ports(PortMapping{"ICMP", 80, 80, ""}),
		"host address":        ports(PortMapping{"TCP", 80, 80, "localhost"}),
		"name":                {Name: "a;K8S_POD_NAME=b"},
		"namespace":           {Namespace: "a=b"},
		"uid":                 {UID: ";"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := pod.cni(); !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v", err)
			}
		})
	}
}
