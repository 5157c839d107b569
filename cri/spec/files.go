package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The names of the files that the containers of a pod share.
const (
	HostsFile      = "hosts"
	HostnameFile   = "hostname"
	ResolvConfFile = "resolv.conf"
)

// SharedFileNames returns the names of the files of [SharedFiles].
func SharedFileNames() []string { return []string{HostsFile, HostnameFile, ResolvConfFile} }

// SharedFiles returns the content of the files that the containers of a pod
// share, by name. Where a pod gets a copy of the node's file, that is read.
func SharedFiles(cfg *runtimeapi.PodSandboxConfig) (map[string][]byte, error) {
	hosts, err := readOptional("/etc/hosts")
	if err != nil {
		return nil, fmt.Errorf("read the node's hosts file: %w", err)
	}

	resolv, err := readOptional("/etc/resolv.conf")
	if err != nil {
		return nil, fmt.Errorf("read the node's resolver configuration: %w", err)
	}

	node, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read the node's host name: %w", err)
	}
	return map[string][]byte{
		HostsFile:      hosts,
		HostnameFile:   []byte(Hostname(cfg, node) + "\n"),
		ResolvConfFile: ResolvConf(cfg.GetDnsConfig(), resolv),
	}, nil
}

func readOptional(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// Hostname returns the host name that a pod's containers see. A pod with the
// node's network has the node's, regardless of its configuration.
func Hostname(cfg *runtimeapi.PodSandboxConfig, node string) string {
	if h := cfg.GetHostname(); h != "" && NamespaceMode(cfg, Network) != runtimeapi.NamespaceMode_NODE {
		return h
	}
	return node
}

// ResolvConf returns a pod's resolver configuration. Without a DNS
// configuration it is the node's; an empty one results in an empty file.
func ResolvConf(dns *runtimeapi.DNSConfig, host []byte) []byte {
	if dns == nil {
		return bytes.Clone(host)
	}
	var out bytes.Buffer

	if len(dns.GetSearches()) > 0 {
		fmt.Fprintf(&out, "search %s\n", strings.Join(dns.GetSearches(), " "))
	}
	for _, s := range dns.GetServers() {
		fmt.Fprintf(&out, "nameserver %s\n", s)
	}

	if len(dns.GetOptions()) > 0 {
		fmt.Fprintf(&out, "options %s\n", strings.Join(dns.GetOptions(), " "))
	}
	return out.Bytes()
}

// checkDNS rejects values that could add lines to the file.
func checkDNS(dns *runtimeapi.DNSConfig) error {
	for _, list := range [][]string{dns.GetServers(), dns.GetSearches(), dns.GetOptions()} {
		for _, s := range list {
			if s == "" || strings.ContainsAny(s, "\x00\n\r") {
				return invalid("DNS configuration with %q", s)
			}
		}
	}
	return nil
}

// LogPath returns the path of a container's log file, "" if it has none.
func LogPath(pod *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) string {
	if pod.GetLogDirectory() == "" || cfg.GetLogPath() == "" {
		return ""
	}
	return path.Join(pod.GetLogDirectory(), cfg.GetLogPath())
}
