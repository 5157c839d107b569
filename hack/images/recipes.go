package main

import (
	"context"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// recipe defines the content and the names of an image. The registry serves it
// under these names for any host.
type recipe struct {
	names  []string
	layers []*part
	config v1.Config
	form   form
}

// form is how an image is represented in the registry.
type form int

const (
	// ociIndex is an OCI index with gzip layers, for several platforms.
	ociIndex form = iota
	// dockerList is a Docker manifest list with gzip layers.
	dockerList
	// ociZstd is one OCI manifest with zstd layers.
	ociZstd
)

const (
	e2e   = "e2e-test-images/"       // on registry.k8s.io
	stage = "k8s-staging-cri-tools/" // on gcr.io
)

// recipes lists every image that critest 1.36 and the demo pull, but
// test-image-digest, whose digest is that of the upstream image, and those of
// Kubernetes' tests.
func (c *contents) recipes(ctx context.Context, kube kubernetes) ([]recipe, error) {
	base := newPart(func() (tree, error) { return c.base(ctx) })
	nginx := func(port int) *part { return newPart(func() (tree, error) { return c.nginx(port) }) }
	program := func(make func(context.Context) (tree, error)) *part {
		return newPart(func() (tree, error) { return make(ctx) })
	}

	httpd, nonewprivs, sleeper, group := newPart(c.httpd), program(c.nonewprivs), program(c.pause), newPart(member)
	layers := func(l ...*part) []*part { return l }
	busybox := v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
	run := func(argv ...string) v1.Config {
		cfg := busybox
		cfg.Cmd = argv
		return cfg
	}

	as := func(user string) v1.Config {
		cfg := busybox
		cfg.User = user
		return cfg
	}

	web := run("nginx", "-c", "/etc/nginx/nginx.conf")
	web.ExposedPorts = map[string]struct{}{"80/tcp": {}}
	pause := v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"}

	all := []recipe{
		{[]string{e2e + "busybox:1.29-2", "library/busybox:latest"}, layers(base), busybox, ociIndex},
		{[]string{e2e + "nginx:1.14-2"}, layers(base, nginx(80)), web, dockerList},
		{[]string{stage + "hostnet-nginx-" + c.arch + ":latest"}, layers(base, nginx(12003)), web, dockerList},
		{[]string{e2e + "httpd:2.4.39-4"}, layers(base, httpd), run("httpd-foreground"), ociZstd},
		{[]string{e2e + "nonewprivs:1.3"}, layers(nonewprivs), v1.Config{Entrypoint: []string{"/nonewprivs"}}, dockerList},
		{[]string{e2e + "resident:1"}, layers(base, program(c.resident)), run("/resident", "watch"), ociIndex},
		{[]string{e2e + "linked-etc:root"}, layers(base, linkedEtc("/tmp/crisp-linked-etc")), busybox, ociIndex},
		{[]string{e2e + "linked-etc:dots"}, layers(base, linkedEtc("../../../../../../../../../tmp/crisp-linked-etc")), busybox, ociZstd},
		{[]string{e2e + "linked-etc:process"}, layers(base, linkedEtc("/proc/1/root/tmp/crisp-linked-etc")), busybox, dockerList},
		{[]string{"pause:3.9"}, layers(sleeper, marker("3.9")), pause, dockerList},
		{[]string{"pause:3.10"}, layers(sleeper, marker("3.10")), pause, dockerList},
		{[]string{stage + "test-image-user-uid:latest"}, layers(base), as("1002"), dockerList},
		{[]string{stage + "test-image-user-username:latest"}, layers(base), as("www-data"), dockerList},
		{[]string{stage + "test-image-user-uid-group:latest"}, layers(base), as("1003:1004"), ociIndex},
		{[]string{stage + "test-image-user-username-group:latest"}, layers(base), as("www-data:1004"), ociIndex},
		{[]string{stage + "test-image-predefined-group:latest"}, layers(base, group), as("1000"), ociZstd},
		{[]string{stage + "test-image-tags:1", stage + "test-image-tags:2", stage + "test-image-tags:3"}, layers(base, marker("same-image")), busybox, ociIndex},
	}

	for _, name := range []string{"test-image-latest:latest", "test-image-tag:test", "test-image-tag:all", "test-image-1:latest", "test-image-2:latest", "test-image-3:latest"} {
		all = append(all, recipe{[]string{stage + name}, layers(base, marker(name)), busybox, ociIndex})
	}
	more, err := kube.recipes(ctx, c, base, web)
	return append(all, more...), err
}
