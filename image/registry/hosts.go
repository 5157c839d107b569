package registry

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"k8s.io/klog/v2"

	"crisp/runtime/rootpath"
)

const (
	hostsFile      = "hosts.toml"
	defaultHostDir = "_default"
	// maxHostsFile bounds hosts.toml, in bytes.
	maxHostsFile = 1 << 20
	// maxCertificates bounds a file with certificates or a key, in bytes.
	maxCertificates = 8 << 20
)

// endpoint is one host that may serve a registry's images.
type endpoint struct {
	base *url.URL // up to and including /v2
	// resolve and pull are the host's capabilities: to resolve a tag to a digest,
	// and to serve content by digest.
	resolve, pull bool
	// push is the capability to take images. A host other than the registry itself has it
	// only if its configuration says so.
	push        bool
	header      http.Header
	tls         *tls.Config
	dialTimeout time.Duration
	// upstream marks the registry itself, as opposed to a mirror of it.
	upstream bool
}

// hostConfig is a [host."URL"] table, or the top level, of hosts.toml.
type hostConfig struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// impliesTLS reports whether there are settings that only make sense for TLS.
func (c *hostConfig) impliesTLS() bool { return c.CA != nil || c.Client != nil || c.SkipVerify }

type hostsConfig struct {
	Server string `toml:"server"`
	hostConfig
	Hosts map[string]hostConfig `toml:"host"`
}

// endpoints lists the hosts for the registry host, in the order in which they are
// to be asked: mirrors first, the registry itself last.
func endpoints(dirs []string, host string) ([]endpoint, error) {
	dir, err := hostDir(dirs, host)
	if err != nil {
		return nil, err
	}

	if dir == "" {
		return upstreamOnly(host, nil)
	}
	data, err := rootpath.ReadNodeFile(filepath.Join(dir, hostsFile), maxHostsFile)
	if errors.Is(err, fs.ErrNotExist) {
		// The older form of the directory has certificates only.
		conf, err := certificates(dir)
		if err != nil {
			return nil, err
		}
		return upstreamOnly(host, conf)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}

	if keys := unknownKeys(data); len(keys) > 0 {
		klog.InfoS("Ignored unknown keys in the configuration of a registry", "file", filepath.Join(dir, hostsFile), "keys", strings.Join(keys, ", "))
	}
	eps, err := parseHosts(dir, host, data)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrConfig, filepath.Join(dir, hostsFile), err)
	}

	return eps, nil
}

func upstreamOnly(host string, conf *tls.Config) ([]endpoint, error) {
	base, err := baseURL(server(host, conf != nil), false)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidReference, err)
	}
	return []endpoint{{base: base, resolve: true, pull: true, push: true, upstream: true, tls: conf}}, nil
}

// hostDir returns the directory that configures host: its own in any of dirs, else
// the first _default; "" if there is neither.
func hostDir(dirs []string, host string) (string, error) {
	for _, name := range dirNames(host) {
		for _, dir := range dirs {
			full := filepath.Join(dir, name)
			st, err := os.Stat(full)
			if err == nil && st.IsDir() {
				return full, nil
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
				return "", fmt.Errorf("%w: %w", ErrConfig, err)
			}
		}
	}
	return "", nil
}

// dirNames lists the names that a host's directory may have, in the order in which
// containerd looks for them: with underscores around the port, for systems where
// names must not have a colon, and unchanged.
func dirNames(host string) []string {
	names := []string{host, defaultHostDir}
	if i := strings.LastIndexByte(host, ':'); i > 0 {
		names = append([]string{host[:i] + "_" + host[i+1:] + "_"}, names...)
	}
	return names
}

// unknownKeys lists the unknown keys in a hosts.toml, with their lines.
func unknownKeys(data []byte) []string {
	var missing *toml.StrictMissingError
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&hostsConfig{})
	if !errors.As(err, &missing) {
		return nil
	}
	var keys []string
	for i := range missing.Errors {
		line, _ := missing.Errors[i].Position()
		keys = append(keys, fmt.Sprintf("%s (line %d)", strings.Join(missing.Errors[i].Key(), "."), line))
	}
	return keys
}

func parseHosts(dir, host string, data []byte) ([]endpoint, error) {
	if len(data) > maxHostsFile {
		return nil, errors.New("file too large")
	}
	var conf hostsConfig
	if err := toml.Unmarshal(data, &conf); err != nil {
		return nil, err
	}

	var eps []endpoint
	for _, address := range hostOrder(data) {
		ep, err := newEndpoint(dir, address, conf.Hosts[address])
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", withoutUser(address), err)
		}
		eps = append(eps, ep)
	}

	address := conf.Server
	if address == "" {
		address = server(host, conf.impliesTLS())
	}

	up, err := newEndpoint(dir, address, conf.hostConfig)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", withoutUser(address), err)
	}

	up.upstream = true
	up.push = up.push || len(conf.Capabilities) == 0
	// A registry that is listed as a host is only asked at its place in the list.
	for i := range eps {
		if eps[i].base.String() == up.base.String() {
			eps[i].upstream, eps[i].push = true, eps[i].push || up.push
			return eps, nil
		}
	}

	return append(eps, up), nil
}

// hostOrder lists the keys of the host tables in file order, which decoding into a
// map loses.
func hostOrder(data []byte) []string {
	var order []string
	seen := map[string]bool{}
	p := unstable.Parser{}
	p.Reset(data)

	inHost := false
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.KeyValue {
			continue
		}

		var key []string
		for it := e.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
		}

		if e.Kind == unstable.Table {
			inHost = len(key) == 1 && key[0] == "host"
		} else if inHost {
			key = append([]string{"host"}, key...)
		}
		if len(key) > 1 && key[0] == "host" && !seen[key[1]] && (e.Kind == unstable.Table || inHost) {
			seen[key[1]] = true
			order = append(order, key[1])
		}
	}

	return order
}

// newEndpoint configures the host at address, a URL or a host name.
func newEndpoint(dir, address string, c hostConfig) (endpoint, error) {
	base, err := baseURL(address, c.OverridePath)
	if err != nil {
		return endpoint{}, err
	}

	ep := endpoint{base: base, resolve: true, pull: true}
	if len(c.Capabilities) > 0 {
		ep.resolve, ep.pull = false, false
		for _, capability := range c.Capabilities {
			switch capability {
			case "resolve":
				ep.resolve = true
			case "pull":
				ep.pull = true
			case "push":
				ep.push = true
			case "referrers":
			default:
				return endpoint{}, fmt.Errorf("unknown capability %q", capability)
			}
		}
	}

	if ep.header, err = headers(c.Header); err != nil {
		return endpoint{}, err
	}
	if c.DialTimeout != "" {
		if ep.dialTimeout, err = time.ParseDuration(c.DialTimeout); err != nil {
			return endpoint{}, err
		}
	}

	ep.tls, err = tlsConfig(dir, c)
	return ep, err
}

// withoutUser is an address without the credentials that somebody has put there.
func withoutUser(address string) string {
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return address
	}
	scheme, _, ok := strings.Cut(address[:at], "://")
	if !ok {
		return address[at+1:]
	}
	return scheme + "://" + address[at+1:]
}

// baseURL returns the base URL of a registry's API at address.
func baseURL(address string, overridePath bool) (*url.URL, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	var wrong *url.Error
	switch {
	case errors.As(err, &wrong): // its text has the address
		return nil, fmt.Errorf("not the address of a registry: %w", wrong.Err)
	case err != nil:
		return nil, err
	case u.User != nil:
		return nil, errors.New("credentials are not taken from an address: use imagePullSecrets, or a header named Authorization")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, fmt.Errorf("%q is not the http or https address of a registry", address)
	}

	u.Path = strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	if !overridePath && !strings.HasSuffix(u.Path, "/v2") {
		u.Path += "/v2"
	}
	u.RawQuery, u.Fragment = "", ""
	return u, nil
}

func headers(values map[string]any) (http.Header, error) {
	h := http.Header{}
	for name, value := range values {
		list, err := stringList(value)
		if err != nil {
			return nil, fmt.Errorf("header %q: %w", name, err)
		}
		for _, v := range list {
			h.Add(name, v)
		}
	}
	return h, nil
}

func stringList(value any) ([]string, error) {
	switch v := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		list := make([]string, 0, len(v))
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("%v is not a string", item)
			}
			list = append(list, s)
		}
		return list, nil
	default:
		return nil, fmt.Errorf("%v is not a string or list of strings", value)
	}
}

// tlsConfig returns nil if c has no TLS settings.
func tlsConfig(dir string, c hostConfig) (*tls.Config, error) {
	cas, err := stringList(c.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	pairs, err := clientPairs(c.Client)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if len(cas) == 0 && len(pairs) == 0 && !c.SkipVerify {
		return nil, nil
	}
	conf := &tls.Config{InsecureSkipVerify: c.SkipVerify} // #nosec G402 -- set by the administrator
	return conf, loadCertificates(conf, dir, cas, pairs)
}

// clientPairs parses the forms that client may have: a file, a list of files, a
// list of [certificate, key] pairs.
func clientPairs(value any) ([][2]string, error) {
	outer, ok := value.([]any)
	if !ok {
		outer = []any{value}
	}

	var pairs [][2]string
	for _, item := range outer {
		list, err := stringList(item)
		switch {
		case err != nil:
			return nil, err
		case len(list) == 1:
			pairs = append(pairs, [2]string{list[0], list[0]})
		case len(list) == 2 && list[1] != "":
			pairs = append(pairs, [2]string{list[0], list[1]})
		case len(list) == 2:
			pairs = append(pairs, [2]string{list[0], list[0]})
		case len(list) > 2:
			return nil, fmt.Errorf("%v is not a certificate and key", list)
		}
	}

	return pairs, nil
}

// loadCertificates adds CAs and client certificates to conf. Names are relative to
// dir.
func loadCertificates(conf *tls.Config, dir string, cas []string, pairs [][2]string) error {
	abs := func(name string) string {
		if filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(dir, name)
	}

	if len(cas) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}

		for _, name := range cas {
			pem, err := rootpath.ReadNodeFile(abs(name), maxCertificates)
			if err != nil {
				return err
			}
			if !pool.AppendCertsFromPEM(pem) {
				return fmt.Errorf("%s contains no certificate", abs(name))
			}
		}
		conf.RootCAs = pool
	}

	for _, pair := range pairs {
		cert, err := rootpath.ReadNodeFile(abs(pair[0]), maxCertificates)
		if err != nil {
			return err
		}
		key, err := rootpath.ReadNodeFile(abs(pair[1]), maxCertificates)
		if err != nil {
			return err
		}
		both, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("%s: %w", abs(pair[0]), err)
		}
		conf.Certificates = append(conf.Certificates, both)
	}

	return nil
}

// certificates reads a directory in Docker's format: *.crt are CAs, and pairs of
// *.cert and *.key are client certificates.
func certificates(dir string) (*tls.Config, error) {
	cas, _ := filepath.Glob(filepath.Join(dir, "*.crt"))
	certs, _ := filepath.Glob(filepath.Join(dir, "*.cert"))
	var pairs [][2]string
	for _, cert := range certs {
		pairs = append(pairs, [2]string{cert, strings.TrimSuffix(cert, ".cert") + ".key"})
	}
	if len(cas) == 0 && len(pairs) == 0 {
		return nil, nil
	}

	conf := &tls.Config{}
	if err := loadCertificates(conf, dir, cas, pairs); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return conf, nil
}
