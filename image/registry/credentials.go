package registry

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
)

// Auth holds a caller's credentials. All fields are optional. It prints without
// its secrets.
type Auth struct {
	Username, Password string
	// Auth is the Base64 form of "username:password".
	Auth string
	// ServerAddress limits the credentials to one registry.
	ServerAddress string
	// IdentityToken is an OAuth2 refresh token, exchanged for an access token.
	IdentityToken string
	// RegistryToken is a bearer token that is sent unchanged.
	RegistryToken string
}

// String lists which kinds of credentials are set, without their values.
func (a Auth) String() string {
	var kinds []string
	for _, k := range []struct{ name, value string }{
		{"password", a.Password}, {"auth", a.Auth},
		{"identity token", a.IdentityToken}, {"registry token", a.RegistryToken},
	} {
		if k.value != "" {
			kinds = append(kinds, k.name)
		}
	}
	if len(kinds) == 0 {
		return "anonymous"
	}
	return "redacted " + strings.Join(kinds, ", ")
}

// GoString prevents %#v from printing secrets.
func (a Auth) GoString() string { return a.String() }

// credentials are an [Auth] resolved for one registry.
type credentials struct {
	username, password           string
	identityToken, registryToken string
}

func (c credentials) empty() bool { return c == credentials{} }

// credentialsFor returns the credentials in a for the registry host.
func credentialsFor(a *Auth, host string) (credentials, error) {
	if a == nil || a.ServerAddress != "" && !sameRegistry(a.ServerAddress, host) {
		return credentials{}, nil
	}
	c := credentials{
		username: a.Username, password: a.Password,
		identityToken: a.IdentityToken, registryToken: a.RegistryToken,
	}

	if c.empty() && a.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(padded(a.Auth))
		if err != nil {
			return credentials{}, fmt.Errorf("%w: auth is not Base64", ErrDenied)
		}

		user, pass, ok := strings.Cut(string(raw), ":")
		if !ok {
			return credentials{}, fmt.Errorf("%w: auth is not username:password", ErrDenied)
		}
		c.username, c.password = user, strings.Trim(pass, "\x00")
	}

	return c, nil
}

func padded(s string) string {
	s = strings.TrimRight(strings.TrimSpace(s), "=")
	return s + strings.Repeat("=", (4-len(s)%4)%4)
}

// sameRegistry reports whether address, a URL or host as in Docker's
// configuration files, denotes the registry host.
func sameRegistry(address, host string) bool {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	return canonicalHost(u.Host) == canonicalHost(host)
}

func canonicalHost(host string) string {
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io":
		return defaultHost
	}
	return strings.TrimSuffix(host, ":443")
}
