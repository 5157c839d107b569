package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/config"
	"crisp/cri/node"
	"crisp/cri/spec"
	"crisp/cri/spec/cdi"
	"crisp/runtime/cgroup"
	"crisp/runtime/host"
	"crisp/runtime/launch"
	"crisp/runtime/plan"
)

// planCommand is the command plan.
func planCommand() *cobra.Command {
	return cli.Configured(&cobra.Command{
		Use: "plan [FLAGS] FILE.json", Short: "Print the system calls that start a container",
		Long: `Print the program that would start a container. The file is an OCI config.json,
or the container configuration that crictl takes; values that depend on an image
or a running pod have their defaults.`,
		Args: cli.Exactly(1, "one file"), DisableFlagsInUseLine: true,
	}, printPlan)
}

// printPlan prints the program that would start a container.
func printPlan(_ context.Context, cfg *config.Config, args []string, out io.Writer) error {
	path := args[0]
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}

	p, err := readPlan(cfg, filepath.Dir(path), data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return p.Print(out)
}

// readPlan makes the plan of either kind of file.
func readPlan(cfg *config.Config, bundle string, data []byte) (*plan.Plan, error) {
	facts := host.Probe()
	cgroups, err := cgroup.New(cfg.CgroupDriver, cfg.CgroupParent)
	if err != nil {
		return nil, err
	}
	defer cgroups.Close()

	var kind struct {
		Version string `json:"ociVersion"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return nil, fmt.Errorf("neither an OCI nor a CRI configuration: %w", err)
	}

	if kind.Version != "" {
		s, err := plan.ReadOCI(data, bundle)
		if err != nil {
			return nil, err
		}
		return launch.Preview(s, facts, cgroups.Hierarchies(), false)
	}

	var c runtimeapi.ContainerConfig
	if err := protojson.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", otherKind(data), err)
	}

	if c.GetMetadata().GetName() == "" {
		return nil, errors.New(otherKind(data) + ": it has no metadata.name")
	}
	s, err := specOf(cfg, facts, cgroups, &c)
	if err != nil {
		return nil, err
	}

	return launch.Preview(s.Spec, facts, cgroups.Hierarchies(), true)
}

// otherKind describes a file that is not a container's configuration.
func otherKind(data []byte) string {
	const want = "plan takes an OCI config.json, or the container configuration of crictl create"
	var object struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
	}
	if err := json.Unmarshal(data, &object); err == nil && object.Kind != "" && object.APIVersion != "" {
		return fmt.Sprintf("this is a Kubernetes %s (%s), not a container's configuration: %s", object.Kind, object.APIVersion, want)
	}
	var pod runtimeapi.PodSandboxConfig
	if err := protojson.Unmarshal(data, &pod); err == nil && pod.GetMetadata().GetName() != "" {
		return fmt.Sprintf("this is the configuration of a pod sandbox (%s), which has no program: %s", pod.Metadata.Name, want)
	}
	return "this is not a container's configuration: " + want
}

// specOf translates a CRI configuration for an ordinary pod.
func specOf(cfg *config.Config, facts host.Facts, cgroups *cgroup.Node, c *runtimeapi.ContainerConfig) (*spec.Result, error) {
	path, err := cgroups.Path("", c.GetMetadata().GetName())
	if err != nil {
		return nil, err
	}

	sc := c.GetLinux().GetSecurityContext()
	uid, gid := uint32(sc.GetRunAsUser().GetValue()), uint32(sc.GetRunAsGroup().GetValue())
	return spec.Container(spec.Input{
		Sandbox: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "default", Uid: "0"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				Privileged: sc.GetPrivileged(), NamespaceOptions: sc.GetNamespaceOptions(),
			}},
		},
		Config: c, Image: ocispec.ImageConfig{Cmd: []string{"/bin/sh"}},
		User:     spec.ResolvedUser{UID: uid, GID: gid, Groups: []uint32{gid}},
		Hostname: "pod", CgroupsPath: path, VolumeDir: "volumes",
		Host: spec.HostOf(facts, os.DirFS("/")), Node: node.Node{}, Seccomp: seccompProfiles(cfg), Defaults: defaults(cfg),
		CDI: cdi.New(cfg.CDISpecDirs).Inject, Hooks: nodeHooks(cfg),
	})
}
