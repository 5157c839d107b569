package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// makeDisk creates the disk with the checkout: its sources, for the data of
// tests, its programs, the tools and images that tests need, and the compiled
// tests, each in the directory of its package.
func makeDisk(ctx context.Context, o options) (image string, err error) {
	checkout := filepath.Dir(o.cache)
	dir := filepath.Join(o.cache, "vm", "checkout")
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	content := []string{"cmd", "cri", "image", "network", "runtime", "test", "hack", "docs", "bin",
		".cache/bin/crictl", ".cache/bin/critest", ".cache/bin/registry", ".cache/bin/checkpointctl", ".cache/bin/suite", ".cache/bin/conformance",
		".cache/cni", ".cache/images/registry"}
	if !o.arch.foreign() {
		content = append(content, linkedPrograms...)
	}
	if o.node {
		content = append(content, nodePrograms...)
	}

	// Tests that need what could not be fetched fail and say so.
	if _, err := os.Stat(filepath.Join(checkout, source(o.arch, fetched))); err == nil {
		content = append(content, fetched)
	}

	for _, name := range content {
		if err := link(filepath.Join(checkout, source(o.arch, name)), filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}

	if !o.shell {
		if err := compile(ctx, checkout, dir, o); err != nil {
			return "", err
		}
	}

	if err := os.WriteFile(filepath.Join(dir, "environment"), []byte(environment(o)), 0o644); err != nil {
		return "", err
	}
	image = filepath.Join(o.cache, "vm", "checkout.img")
	if err := os.RemoveAll(image); err != nil {
		return "", err
	}

	return image, makeExt4(ctx, dir, image, "4G")
}

// source is where a file or directory of the machine's checkout comes from.
// What was built for another architecture has a directory of its own, laid out
// as the cache.
func source(a arch, name string) string {
	if !a.foreign() {
		return name
	}
	if name == "bin" {
		return filepath.Join(".cache", a.name, "programs")
	}
	if rest, ok := strings.CutPrefix(name, ".cache/"); ok {
		return filepath.Join(".cache", a.name, rest)
	}
	return name
}

// environment is the tests' environment, for systemd, which takes a value
// literally only between single quotes.
func environment(o options) string {
	// Tests of alert rules and of the board ask nothing of the machine.
	lacks := "prometheus"
	if o.arch.foreign() {
		for _, p := range linkedPrograms {
			lacks += "," + filepath.Base(p)
		}
	}
	return fmt.Sprintf("CRISP_STRICT=1\nCRISP_LACKS=%s\nCRISP_VM=1\nCRISP_TIME_SCALE=%g\nCRISP_VM_ONLY='%s'\nCRISP_VM_RUN='%s'\nCRISP_VM_LONG=%t\nTMPDIR=/var/tmp\n",
		lacks, o.scale, o.only, o.tests, o.long)
}

// link hard-links a file, or the files of a directory.
func link(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}

		target := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}

		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		return os.Link(path, target)
	})
}

// tested are the directories whose tests depend on the machine they run on:
// those of sources, tools and measurements do not.
var tested = []string{"cmd", "cri", "image", "network", "runtime", "test/e2e", "test/systemd", "test/testkit"}

// testedWithSELinux is the one with the test that needs it.
const testedWithSELinux = "test/systemd"

// testedCrash is the one with the tests that need programs with failpoints.
const testedCrash = "test/crash"

// testedNode is the one with the tests of a node of Kubernetes.
const testedNode = "test/node"

// nodePrograms are additional programs for those.
var nodePrograms = []string{
	".cache/kubernetes/etcd", ".cache/kubernetes/kube-apiserver", ".cache/kubernetes/kube-controller-manager", ".cache/kubernetes/kube-scheduler",
	".cache/kubernetes/kubelet", ".cache/kubernetes/kube-proxy", ".cache/kubernetes/kubectl",
}

// linkedPrograms are additional programs that need a compiler of C for the
// machine's architecture.
var linkedPrograms = []string{".cache/bin/nvidia-cdi-hook"}

// fetched is CRIU, which comes from Debian's development suite.
const fetched = ".cache/criu"

// compile compiles their tests.
func compile(ctx context.Context, checkout, dir string, o options) error {
	tested, tags := tested, "-tags="
	switch {
	case o.selinux:
		tested = []string{testedWithSELinux}
	case o.node:
		tested, tags = []string{testedNode}, "-tags=node"
	}

	args := []string{"list", tags, "-f", `{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}`}
	for _, t := range tested {
		args = append(args, "./"+t+"/...")
	}

	out, err := o.goCommand(ctx, checkout, args...).Output()
	if err != nil {
		return fmt.Errorf("list packages: %w", err)
	}

	for line := range strings.Lines(string(out)) {
		rel := strings.TrimPrefix(strings.TrimSpace(line), "crisp/")
		if !o.chooses(rel) {
			continue
		}
		test := o.goCommand(ctx, checkout, "test", "-c", tags, "-ldflags=-s -w", "-o", filepath.Join(dir, rel, "compiled.test"), "./"+rel)
		if err := output(test); err != nil {
			return fmt.Errorf("compile the tests of %s: %w", rel, err)
		}
	}

	if o.chooses(testedCrash) && !o.selinux && !o.node {
		if err := compileCrash(ctx, checkout, dir, o); err != nil {
			return err
		}
	}

	return output(o.goCommand(ctx, checkout, "build", "-o", filepath.Join(dir, ".cache", "bin", "test2json"), "cmd/test2json"))
}

// chooses reports whether -only may select a suite with the tests of a package:
// one has its name, or that and a variant's.
func (o options) chooses(pkg string) bool {
	if o.only == "" || o.selinux || o.node {
		return true
	}
	only, err := regexp.Compile(o.only)
	return err == nil && (only.MatchString(pkg) || only.MatchString(pkg+"/systemd"))
}

// compileCrash compiles the tests of crashes, and the programs with failpoints
// that they need.
func compileCrash(ctx context.Context, checkout, dir string, o options) error {
	test := o.goCommand(ctx, checkout, "test", "-c", "-tags=crash", "-ldflags=-s -w", "-o", filepath.Join(dir, testedCrash, "compiled.test"), "./"+testedCrash)
	if err := output(test); err != nil {
		return fmt.Errorf("compile the tests of crashes: %w", err)
	}

	programs := filepath.Join(dir, ".cache", "crash")
	if err := os.MkdirAll(programs, 0o755); err != nil {
		return err
	}
	build := o.goCommand(ctx, checkout, "build", "-tags=crash,nri_no_wasm", "-ldflags=-s -w", "-o", programs, "./cmd/crisp", "./cmd/crisp-keeper")
	if err := output(build); err != nil {
		return fmt.Errorf("build programs with failpoints: %w", err)
	}
	return nil
}

// goCommand is a command of Go for the machine, not yet started. The machine's
// tests are as static as the programs: a child cannot give up a libc's memory.
func (o options) goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+o.arch.name)
	return cmd
}
