package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNotMade means that a tool or the images are not in the cache.
var ErrNotMade = errors.New(`not made yet: run "make build tools images packages", for Kubernetes "make kubernetes" too`)

// Cache is a checkout's directory of programs, tools and images for tests.
type Cache struct{ checkout string }

// Find looks for the checkout from the working directory upwards.
func Find() (Cache, error) {
	dir, err := os.Getwd()
	if err != nil {
		return Cache{}, err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		// The tools' modules have a go.mod too, but no cmd.
		if _, err := os.Stat(filepath.Join(dir, "cmd", "crisp")); err == nil {
			return Cache{dir}, nil
		}
	}
	return Cache{}, errors.New("find the checkout: no directory above this one holds cmd/crisp")
}

// Crisp is the daemon, built with its keeper next to it.
func (c Cache) Crisp() (string, error) { return made(filepath.Join(c.checkout, "bin", "crisp")) }

// Package is the Debian package of the daemon.
func (c Cache) Package() (string, error) {
	debs, err := filepath.Glob(filepath.Join(c.checkout, "bin", "crisp_*.deb"))
	if err == nil && len(debs) != 1 {
		err = fmt.Errorf("bin/crisp_*.deb: %w", ErrNotMade)
	}
	if err != nil {
		return "", err
	}
	return debs[0], nil
}

// Packages is the directory with the packages of every format and architecture.
func (c Cache) Packages() (string, error) {
	dir := filepath.Join(c.checkout, "dist")
	_, err := made(filepath.Join(dir, "SHA256SUMS"))
	return dir, err
}

// Tool is a program that is built for the tests: crictl, critest, registry.
func (c Cache) Tool(name string) (string, error) {
	return made(filepath.Join(c.checkout, ".cache", "bin", name))
}

// Plugins is the directory of the CNI plugins. They depend on a program that is
// not built with them.
func (c Cache) Plugins() (string, error) {
	if _, err := exec.LookPath("iptables"); err != nil {
		return "", fmt.Errorf("the CNI plugins need iptables: install it: %w", err)
	}
	return made(filepath.Join(c.checkout, ".cache", "cni"))
}

// Images is the storage of a registry that has the test images.
func (c Cache) Images() (string, error) {
	return made(filepath.Join(c.checkout, ".cache", "images", "registry"))
}

// DemoImages is the storage that has the demo's image.
func (c Cache) DemoImages() (string, error) {
	return made(filepath.Join(c.checkout, ".cache", "demo", "registry"))
}

// CRIU is the program that saves processes.
func (c Cache) CRIU() (string, error) {
	return made(filepath.Join(c.checkout, ".cache", "criu", "criu"))
}

// Kubernetes is one of its programs, or etcd.
func (c Cache) Kubernetes(name string) (string, error) {
	return made(filepath.Join(c.checkout, ".cache", "kubernetes", name))
}

// Flannel is the directory of flannel's daemon and plugin.
func (c Cache) Flannel() (string, error) {
	dir := filepath.Join(c.checkout, ".cache", "flannel")
	for _, program := range []string{"flanneld", "flannel"} {
		if _, err := made(filepath.Join(dir, program)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func made(path string) (string, error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s: %w", path, ErrNotMade)
	} else if err != nil {
		return "", err
	}
	return path, nil
}
