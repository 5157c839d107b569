package registry

import (
	"encoding/json"
	"fmt"
	"strings"
)

// authFile is what docker login, podman login and Kubernetes' secrets for images write.
type authFile struct {
	Auths map[string]struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		Auth          string `json:"auth"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	} `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

// AuthFrom returns the credentials for an image in the content of a file as docker login
// and podman login write it, nil if it has none. The longest key that is the registry or
// a path of it which the repository is below counts.
func AuthFrom(file []byte, ref Reference) (*Auth, error) {
	var conf authFile
	if err := json.Unmarshal(file, &conf); err != nil {
		return nil, fmt.Errorf("decode credentials: %w", err)
	}

	best, length := (*Auth)(nil), -1
	for key, a := range conf.Auths {
		path, ok := pathOf(key, ref)
		if !ok || len(path) <= length {
			continue
		}
		one := Auth{Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, ServerAddress: ref.Host}
		if one.IdentityToken != "" {
			one.Username, one.Password = "", "" // docker writes a placeholder
		}
		best, length = &one, len(path)
	}
	if best != nil && best.String() != (Auth{}).String() {
		return best, nil
	}

	helper := conf.CredsStore
	for host, name := range conf.CredHelpers {
		if sameRegistry(host, ref.Host) {
			helper = name
		}
	}
	if helper != "" {
		return nil, fmt.Errorf("the credentials for %s are not in the file but with the helper %q, which is not asked", ref.Host, clean(helper))
	}
	return nil, nil
}

// pathOf is the path of a key in an authFile, if that key is about an image.
func pathOf(key string, ref Reference) (path string, ok bool) {
	if _, rest, found := strings.Cut(key, "://"); found {
		key = rest
	}
	host, path, _ := strings.Cut(strings.TrimSuffix(key, "/"), "/")
	if path == "v1" || path == "v2" {
		path = ""
	}
	return path, sameRegistry(host, ref.Host) && (path == "" || strings.HasPrefix(ref.Repo+"/", path+"/"))
}
