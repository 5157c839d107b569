package cluster

import (
	"fmt"
	"strings"
)

// ScrapeJob is a scrape configuration of Prometheus, in YAML, by which it gets a page of
// the node's kubelet ("metrics/cadvisor") from the API server, as the job kubelet.
func (n *Node) ScrapeJob(page string) string {
	return fmt.Sprintf(`{job_name: kubelet, scheme: https, metrics_path: "/api/v1/nodes/%s/proxy/%s", `+
		"tls_config: {ca_file: %q, cert_file: %q, key_file: %q}, static_configs: [{targets: [%q]}]}",
		n.Name, page, n.cluster.pki("ca.crt"), n.cluster.pki("admin.crt"), n.cluster.pki("admin.key"), strings.TrimPrefix(server, "https://"))
}
