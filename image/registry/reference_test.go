package registry

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	hex := strings.Repeat("a1", 32)
	for in, want := range map[string]string{
		"busybox":                                 "docker.io/library/busybox:latest",
		"busybox:1.36":                            "docker.io/library/busybox:1.36",
		"library/busybox":                         "docker.io/library/busybox:latest",
		"docker.io/busybox":                       "docker.io/library/busybox:latest",
		"index.docker.io/user/app":                "docker.io/user/app:latest",
		"registry-1.docker.io/user/app":           "docker.io/user/app:latest",
		"user/app":                                "docker.io/user/app:latest",
		"localhost/app":                           "localhost/app:latest",
		"localhost:5000/app:x":                    "localhost:5000/app:x",
		"HOST/app":                                "HOST/app:latest",
		"registry.k8s.io/pause:3.10":              "registry.k8s.io/pause:3.10",
		"[::1]:5000/a/b":                          "[::1]:5000/a/b:latest",
		"gcr.io/a/b@sha256:" + hex:                "gcr.io/a/b@sha256:" + hex,
		"gcr.io/a/b:tag@sha256:" + hex:            "gcr.io/a/b@sha256:" + hex,
		"gcr.io/a/b@sha512:" + hex + hex:          "gcr.io/a/b@sha512:" + hex + hex,
		"a/b__c/d-e--f/g.h":                       "docker.io/a/b__c/d-e--f/g.h:latest",
		"x:" + strings.Repeat("t", 128):           "docker.io/library/x:" + strings.Repeat("t", 128),
		"h.io/" + strings.Repeat("a", 250) + ":t": "h.io/" + strings.Repeat("a", 250) + ":t",
	} {
		ref, err := ParseReference(in)
		if err != nil || ref.String() != want {
			t.Errorf("%q is %q, %v; want %q", in, ref, err, want)
			continue
		}

		again, err := ParseReference(ref.String())
		if err != nil || again != ref {
			t.Errorf("%q again is %q, %v", ref, again, err)
		}
	}

	for _, in := range []string{
		"", ":", "@", "a:", "a@", "A/b/C", "a//b", "/a", "a/", "../a", "a/../b", "a/./b", "a:b/c:d:e", "a b", "a\nb", "-a", "a_",
		"a:-t", "a:" + strings.Repeat("t", 129), "a@sha256:abc", "a@sha256:" + strings.Repeat("Z", 64), "a@md5:" + hex[:32],
		"http://host/a", "host:port/a", "host:123456/a", "us er@host/a", "h.io/" + strings.Repeat("a", 251), "a@sha256:" + hex + "@sha256:" + hex,
	} {
		if ref, err := ParseReference(in); !errors.Is(err, ErrInvalidReference) {
			t.Errorf("%q is %q, %v; want %v", in, ref, err, ErrInvalidReference)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"busybox", "localhost:5000/a/b:c", "a@sha256:" + strings.Repeat("0", 64), "[::1]/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}

		again, err := ParseReference(ref.String())
		if err != nil || again != ref {
			t.Errorf("%q gives %q, which gives %q, %v", s, ref, again, err)
		}
		if strings.Contains(ref.Repo, "..") || strings.ContainsAny(ref.String(), " \n?#%\\") {
			t.Errorf("%q gives %q", s, ref)
		}
	})
}

func TestAuthPrintsNoSecret(t *testing.T) {
	a := &Auth{Username: "u", Password: "secret", Auth: "secret", IdentityToken: "secret", RegistryToken: "secret"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(verb, a); strings.Contains(s, "secret") {
			t.Errorf("%s prints %q", verb, s)
		}
		if s := fmt.Sprintf(verb, *a); strings.Contains(s, "secret") {
			t.Errorf("%s of a value prints %q", verb, s)
		}
	}
}

func TestCredentialsFor(t *testing.T) {
	up := credentials{username: "u", password: "p"}
	for _, c := range []struct {
		name string
		auth *Auth
		host string
		want credentials
	}{
		{"none", nil, "h.io", credentials{}},
		{"password", &Auth{Username: "u", Password: "p"}, "h.io", up},
		{"auth", &Auth{Auth: "dTpw"}, "h.io", up},
		{"auth padded", &Auth{Auth: "dTpwAAA="}, "h.io", up},
		{"auth unpadded", &Auth{Auth: "dTpwAAA"}, "h.io", up},
		{"server", &Auth{Username: "u", Password: "p", ServerAddress: "h.io"}, "h.io", up},
		{"server URL", &Auth{Username: "u", Password: "p", ServerAddress: "https://h.io/v2/"}, "h.io", up},
		{"server port", &Auth{Username: "u", Password: "p", ServerAddress: "h.io:443"}, "h.io", up},
		{"Docker Hub", &Auth{Username: "u", Password: "p", ServerAddress: "https://index.docker.io/v1/"}, "docker.io", up},
		{"other server", &Auth{Username: "u", Password: "p", ServerAddress: "https://other.io"}, "h.io", credentials{}},
		{"other port", &Auth{Username: "u", Password: "p", ServerAddress: "h.io:5000"}, "h.io", credentials{}},
		{"suffix", &Auth{Username: "u", Password: "p", ServerAddress: "evil-h.io"}, "h.io", credentials{}},
	} {
		if got, err := credentialsFor(c.auth, c.host); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}

	for _, bad := range []string{"%%%", "bm9jb2xvbg=="} {
		if _, err := credentialsFor(&Auth{Auth: bad}, "h.io"); !errors.Is(err, ErrDenied) {
			t.Errorf("%q: %v, want %v", bad, err, ErrDenied)
		}
	}
}

func TestParseChallenges(t *testing.T) {
	for in, want := range map[string]string{
		`Bearer realm="https://a/t",service="s",scope="repository:x:pull"`: `[{bearer map[realm:https://a/t scope:repository:x:pull service:s]}]`,
		`Basic realm="a b, c"`:              `[{basic map[realm:a b, c]}]`,
		`Basic realm="a", Bearer realm="b"`: `[{basic map[realm:a]} {bearer map[realm:b]}]`,
		`Negotiate`:                         `[{negotiate map[]}]`,
		`Negotiate, Basic realm=x`:          `[{negotiate map[]} {basic map[realm:x]}]`,
		`bearer REALM=x , Service = y`:      `[{bearer map[realm:x]} {service map[]} {= map[]} {y map[]}]`,
		`Bearer realm="un\"quoted\\"`:       `[{bearer map[realm:un"quoted\]}]`,
		`Bearer realm="open`:                `[{bearer map[]}]`,
		``:                                  `[]`,
		strings.Repeat("x", maxChallenge+1): `[]`,
		`Bearer realm=""`:                   `[{bearer map[realm:]}]`,
		"Bearer realm=\"a\"\t":              `[{bearer map[realm:a]} {` + "\t" + ` map[]}]`,
	} {
		if got := fmt.Sprint(parseChallenges([]string{in})); got != want {
			t.Errorf("%q:\n got %s\nwant %s", in, got, want)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s"`)
	f.Add(`a,b=,"\`)
	f.Fuzz(func(_ *testing.T, s string) { parseChallenges([]string{s}) })
}
