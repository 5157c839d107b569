package main

import (
	"context"
	"fmt"
	"os/exec"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// controlPlane builds the images that kubeadm pulls for its own version. The
// programs are built locally.
func (k kubernetes) controlPlane(ctx context.Context, c *contents) ([]recipe, error) {
	if err := c.packages.add(ctx, "nftables"); err != nil {
		return nil, err
	}
	version, err := exec.CommandContext(ctx, k.program("kubeadm"), "version", "--output=short").Output()
	if err != nil {
		return nil, fmt.Errorf("ask kubeadm for its version: %w", err)
	}

	list := exec.CommandContext(ctx, k.program("kubeadm"), "config", "images", "list", "--kubernetes-version="+strings.TrimSpace(string(version)))
	names, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("ask kubeadm for its images: %w", err)
	}

	var all []recipe
	for name := range strings.Lines(string(names)) {
		name = strings.TrimPrefix(strings.TrimSpace(name), "registry.k8s.io/")
		program, _, _ := strings.Cut(path.Base(name), ":")
		if program == "pause" {
			continue
		}

		r := recipe{[]string{name}, []*part{newPart(func() (tree, error) { return k.programLayer(c, program) })}, v1.Config{Env: searchPath}, ociIndex}
		if program == "coredns" {
			r.names = append(r.names, "coredns/coredns:test")
			r.config.Entrypoint = []string{"/usr/local/bin/coredns"}
		}
		all = append(all, r)
	}

	return all, nil
}

// programLayer is one program, and for kube-proxy the one that it depends on.
func (k kubernetes) programLayer(c *contents, program string) (tree, error) {
	t := tree{}
	t.dir("/tmp", 0o1777)
	if err := t.copy("/usr/local/bin/"+program, 0o755, k.program(program)); err != nil {
		return nil, err
	}
	if program == "kube-proxy" {
		return t, c.packages.install(t, "/usr/sbin/nft", "/usr/sbin/nft")
	}
	return t, nil
}
