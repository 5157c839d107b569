package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cri/config"
	"crisp/cri/spec"
	"crisp/cri/spec/user"
	"crisp/runtime/cgroup"
	"crisp/runtime/hook"
	"crisp/runtime/host"
	"crisp/runtime/keeper/client"
	"crisp/runtime/launch"
	"crisp/runtime/plan"
	"crisp/runtime/resctrl"
)

// endTime bounds the termination of a bundle's container.
const endTime = 10 * time.Second

// exitCode is the exit code of a command that has printed everything else: that of the
// container that it ran, or of a check.
type exitCode int

func (c exitCode) Error() string { return "exit code " + strconv.Itoa(int(c)) }

// runCommand is the command run.
func runCommand() *cobra.Command {
	return cli.Configured(&cobra.Command{
		Use: "run [FLAGS] BUNDLE", Short: "Run the container of an OCI bundle",
		Long: `Run the container of an OCI bundle, a directory with a config.json, without a
daemon. Streams and signals are forwarded, the command exits with the container's
exit code, and nothing is left behind.`,
		Args: cli.Exactly(1, "one directory with a config.json"), DisableFlagsInUseLine: true,
	}, func(ctx context.Context, cfg *config.Config, args []string, _ io.Writer) error {
		return runBundle(ctx, cfg, args[0])
	})
}

// runBundle runs the container of an OCI bundle, with this command's streams
// and signals, until it exits. No daemon is involved: the keeper and the cgroup
// are its own, and are removed at the end.
func runBundle(ctx context.Context, cfg *config.Config, dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return err
	}

	s, err := plan.ReadOCI(data, dir)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}

	if s.Process == nil || s.Linux == nil {
		return fmt.Errorf("%s: %w: process or linux is missing", dir, plan.ErrSpec)
	}
	if err := spec.CheckSysctls(s); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}

	warnings := plan.Warnings(s)
	for _, h := range hook.List(s.Hooks, nil) {
		w, err := h.Check()
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		if w != "" {
			warnings = append(warnings, w)
		}
	}
	for _, w := range warnings {
		fmt.Fprintln(os.Stderr, "crisp: warning:", w)
	}
	if err := setHome(s); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}

	// Signals that would stop the daemon are forwarded to the container.
	code, err := runSpec(context.WithoutCancel(ctx), cfg, s)
	if err != nil {
		return err
	}

	if code != 0 {
		return exitCode(code)
	}
	return nil
}

// setHome sets HOME to the user's home directory in the root file system, as
// OCI runtimes do.
func setHome(s *specs.Spec) error {
	set := func(e string) bool { return strings.HasPrefix(e, "HOME=") && e != "HOME=" }
	if s.Root == nil || slices.ContainsFunc(s.Process.Env, set) {
		return nil
	}

	root, err := os.Open(s.Root.Path)
	if err != nil {
		return err
	}
	defer root.Close()

	db, err := user.Open(root)
	if err != nil {
		return err
	}
	defer db.Close()

	home := "/"
	switch account, err := db.Account(user.ID{Number: s.Process.User.UID}); {
	case err == nil && account.Home != "":
		home = account.Home
	case err != nil && !errors.Is(err, user.ErrUnknown):
		return err
	}

	s.Process.Env = append(slices.DeleteFunc(s.Process.Env, func(e string) bool { return e == "HOME=" }), "HOME="+home)
	return nil
}

// runSpec runs a container in a cgroup that it creates.
func runSpec(ctx context.Context, cfg *config.Config, s *specs.Spec) (code int, err error) {
	groups, err := cgroup.New(cfg.CgroupDriver, cfg.CgroupParent)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, groups.Close()) }()

	if s.Linux.CgroupsPath == "" {
		s.Linux.CgroupsPath, err = groups.Path("", "run-"+strconv.Itoa(os.Getpid()))
	} else {
		s.Linux.CgroupsPath, err = groups.Resolve(s.Linux.CgroupsPath)
	}
	if err != nil {
		return 0, err
	}

	if err := mustBeFree(groups, s.Linux.CgroupsPath); err != nil {
		return 0, err
	}
	group, err := groups.Create(ctx, s.Linux.CgroupsPath, withDevices(s.Linux.Resources))
	if err != nil {
		return 0, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(ctx, endTime)
		defer cancel()
		err = errors.Join(err, group.Remove(ctx))
	}()

	place, remove, err := classOf(s, group)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	return runKept(ctx, s, groups.Hierarchies(), group, place)
}

// classOf makes the container's class of Intel RDT, if it has one, and returns where
// its processes are placed and what removes the class.
func classOf(s *specs.Spec, group *cgroup.Group) (place launch.Group, remove func() error, err error) {
	r := s.Linux.IntelRdt
	if r == nil {
		return group, func() error { return nil }, nil
	}
	fs, err := resctrl.Open(resctrl.Root)
	if err != nil {
		return nil, nil, err
	}

	id := "crisp-run-" + strconv.Itoa(os.Getpid())
	remove = func() error { return fs.Remove(id, r) }
	if err := fs.Create(id, r); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return launch.Class{FS: fs, ID: id, Spec: r}.With(group), remove, nil
}

// mustBeFree refuses a cgroup that has processes: they would be limited and
// killed with the container.
func mustBeFree(groups *cgroup.Node, path string) error {
	group, err := groups.Open(path)
	switch {
	case errors.Is(err, cgroup.ErrNotFound):
		return nil
	case err != nil:
		return err
	}

	pids, err := group.Pids()
	if err != nil {
		return err
	}

	if len(pids) > 0 {
		return fmt.Errorf("%w: cgroup %s already has %d processes; choose one for the container alone", plan.ErrSpec, path, len(pids))
	}
	return nil
}

// withDevices allows the devices that every container has, as OCI runtimes do.
func withDevices(r *specs.LinuxResources) *specs.LinuxResources {
	out := specs.LinuxResources{}
	if r != nil {
		out = *r
	}
	out.Devices = append(append([]specs.LinuxDeviceCgroup{}, out.Devices...), spec.DeviceRules()[1:]...)
	return &out
}

// runKept runs a container with its own keeper.
// Its processes are started at place, which has that group.
func runKept(ctx context.Context, s *specs.Spec, show []plan.Hierarchy, group *cgroup.Group, place launch.Group) (code int, err error) {
	state, err := os.MkdirTemp("", "crisp-run-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()

	keeper, err := client.Connect(ctx, state, "")
	if err != nil {
		return 0, err
	}
	l := launch.New(keeper, host.Probe())
	k := newKept(keeper, l, s, state)
	defer func() {
		ctx, cancel := context.WithTimeout(ctx, endTime)
		defer cancel()
		err = errors.Join(err, group.Kill(ctx), keeper.End(ctx))
		k.wg.Wait()
	}()
	defer func() { err = errors.Join(err, k.end(ctx), l.Close()) }()

	held := launch.Held{}
	if !s.Process.Terminal {
		held["stdin"], held["stdout"], held["stderr"] = os.Stdin, os.Stdout, os.Stderr
	}

	signals := catch() // before the container can expect one
	started, err := l.Container(ctx, launch.Request{
		ID: runID, Name: "start container", Spec: s, Held: held, Group: place, Classed: s.Linux.IntelRdt != nil, Hierarchies: show, CgroupDir: group.Relative(), Hooks: k.hooks, About: k.about,
	})
	if err != nil {
		return 0, err
	}
	defer started.Close()

	restore, err := passOn(started, signals)
	if err != nil {
		return 0, err
	}
	defer restore()

	k.poststart(ctx, started.Pid)
	exit, ok := <-k.exit(runID)
	if !ok {
		return 0, errKeeper
	}
	return exit.Code, keeper.Forget(ctx, runID)
}
