package registry

import (
	"fmt"
	"net"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	// The digest algorithms that references may use.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

const (
	defaultHost = "docker.io"
	defaultTag  = "latest"
	// officialRepo is the prefix of Docker Hub's images with one-word names.
	officialRepo = "library/"

	maxRepoLength = 255
)

var (
	hostPattern = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?$`)
	repoPattern = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

// Reference names an image in a registry, with defaults filled in. Either Tag or
// Digest is set, never both.
type Reference struct {
	// Host is the registry's host as in image names: "docker.io", "localhost:5000".
	Host string
	// Repo is the repository's path: "library/busybox".
	Repo   string
	Tag    string
	Digest digest.Digest
}

// ParseReference parses a reference as users write it. A missing host means
// Docker Hub, a missing tag "latest"; a digest takes precedence over a tag.
func ParseReference(s string) (Reference, error) {
	invalid := func(reason string) (Reference, error) {
		return Reference{}, fmt.Errorf("%w: %q: %s", ErrInvalidReference, s, reason)
	}
	var ref Reference
	name, dig, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		ref.Digest = digest.Digest(dig)
		if err := ref.Digest.Validate(); err != nil {
			return invalid(err.Error())
		}
	}

	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, ref.Tag = name[:i], name[i+1:]
		if !tagPattern.MatchString(ref.Tag) {
			return invalid("malformed tag")
		}
	}

	ref.Host, ref.Repo = splitHost(name)
	if !hostPattern.MatchString(ref.Host) {
		return invalid("malformed registry host")
	}
	if !repoPattern.MatchString(ref.Repo) {
		return invalid("malformed repository name (lower-case letters, digits, and between them . _ - /)")
	}
	if len(ref.Host)+1+len(ref.Repo) > maxRepoLength {
		return invalid("repository name too long")
	}

	switch {
	case hasDigest:
		ref.Tag = ""
	case ref.Tag == "":
		ref.Tag = defaultTag
	}

	return ref, nil
}

// splitHost separates the registry from the repository: the first component is a
// host if it has a dot or a port, or cannot be part of a repository.
func splitHost(name string) (host, repo string) {
	host, repo, ok := strings.Cut(name, "/")
	if !ok || !strings.ContainsAny(host, ".:[") && host != "localhost" && strings.ToLower(host) == host {
		host, repo = defaultHost, name
	}
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = defaultHost
	}
	if host == defaultHost && !strings.Contains(repo, "/") {
		repo = officialRepo + repo
	}
	return host, repo
}

// Name returns the reference without tag and digest.
func (r Reference) Name() string { return r.Host + "/" + r.Repo }

// String returns the full reference.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + r.Digest.String()
	}
	return r.Name() + ":" + r.Tag
}

// identifier returns what the protocol calls <reference>: tag or digest.
func (r Reference) identifier() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// server returns the default URL of the registry host. A registry on this machine
// is assumed to speak plain HTTP unless TLS is implied by its configuration.
func server(host string, tls bool) string {
	if host == defaultHost {
		return "https://registry-1.docker.io"
	}
	if isLoopback(host) && !tls {
		return "http://" + host
	}
	return "https://" + host
}

// isLoopback reports whether host is this machine and the port is not that of
// HTTPS: such a registry is accessed over plain HTTP.
func isLoopback(hostport string) bool {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		host, port = strings.Trim(hostport, "[]"), ""
	}
	if port == "443" {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
