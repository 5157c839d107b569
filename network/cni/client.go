package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"crisp/runtime/durable"
	"sync/atomic"
)

// statusTimeout is short because kubelet asks every few seconds.
const statusTimeout = 5 * time.Second

// Client runs plugins and records what they attached.
type Client struct {
	dirs     atomic.Pointer[dirs]
	cacheDir string
	ifName   string
	records  records
	runner   *runner
}

// Attachment is a pod's connection to a network, as plugins see it.
type Attachment struct {
	// ID is the container ID of the CNI specification: the pod's ID.
	ID string
	// NetNS is the path of the namespace. It may be empty for DEL.
	NetNS string
	// Args are passed in CNI_ARGS.
	Args [][2]string
	// Capabilities are arguments by capability. A plugin receives those that its
	// configuration declares.
	Capabilities map[string]any
}

// NewClient returns a client that looks for plugins in binDirs, names the pods'
// interface ifName and keeps its records in cacheDir, which no other client may
// use at the same time. builtins are plugins that need no program, by type; meter, if
// not nil, measures the calls of plugins.
func NewClient(binDirs []string, cacheDir, ifName string, builtins map[string]Builtin, meter Meter) (*Client, error) {
	c := NewReader(binDirs, cacheDir, ifName, builtins)
	c.runner.meter = meter
	if err := os.MkdirAll(c.records.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make attachment directory: %w", err)
	}
	if err := durable.RemoveTemps(c.records.dir); err != nil {
		return nil, fmt.Errorf("sweep attachment directory: %w", err)
	}
	return c, nil
}

// NewReader returns a client that makes and sweeps nothing, for the records of another
// process. Only [Client.Attached], [Client.Calls], [Client.Check], [Client.Hold] and
// [Client.NetNS] may be used.
func NewReader(binDirs []string, cacheDir, ifName string, builtins map[string]Builtin) *Client {
	c := &Client{
		cacheDir: cacheDir,
		ifName:   ifName,
		records:  records{filepath.Join(cacheDir, "attachments")},
		runner:   &runner{grace: killGrace, run: runGroup, builtins: builtins, calls: &calls{}},
	}
	for plugin, builtin := range builtins {
		if builtin.New {
			c.runner.served = append(c.runner.served, plugin)
		}
	}
	c.SetBinDirs(binDirs)
	return c
}

// dirs are the directories of plugins, with a library that looks into them.
type dirs struct {
	bin []string
	lib *libcni.CNIConfig
}

// SetBinDirs looks for plugins in other directories from now on.
func (c *Client) SetBinDirs(binDirs []string) {
	c.dirs.Store(&dirs{binDirs, libcni.NewCNIConfigWithCacheDir(binDirs, c.cacheDir, c.runner)})
}

// BinDirs are the directories that plugins are looked for in.
func (c *Client) BinDirs() []string { return c.dirs.Load().bin }

// RunBy replaces the processes of plugins by a function, for tests that make
// thousands of calls. It must be called before any other method.
func (c *Client) RunBy(run Run) { c.runner.run = run }

// Add attaches a pod. If a plugin fails, or ctx ends, everything is undone by DEL
// before Add returns; if that fails too, the record is kept for a later
// [Client.Del].
func (c *Client) Add(ctx context.Context, conf *Config, a Attachment) (*types100.Result, error) {
	rec := &record{
		Version: recordVersion, ID: a.ID, NetNS: a.NetNS, IfName: c.ifName,
		Args: a.Args, Capabilities: a.Capabilities, Config: conf.Bytes(), Served: c.served(conf.list),
	}
	if err := c.records.save(rec); err != nil {
		return nil, err
	}

	result, err := c.add(ctx, conf, runtimeConf(rec, a.NetNS))
	if err == nil {
		return result, nil
	}
	return nil, errors.Join(err, c.Del(context.WithoutCancel(ctx), conf, a))
}

func (c *Client) add(ctx context.Context, conf *Config, rt *libcni.RuntimeConf) (*types100.Result, error) {
	lock, err := c.records.lock(rt.ContainerID)
	if err != nil {
		return nil, err
	}
	defer lock.Close()

	ctx, cancel := context.WithTimeout(ctx, addTimeout)
	defer cancel()

	output, err := c.libBy(c.runner.serving(c.runner.served, lock)).AddNetworkList(ctx, conf.list, rt)
	if err != nil {
		return nil, concise(err)
	}

	result, err := types100.GetResult(output)
	if err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	return result, nil
}

// served lists the types in a chain that are served for new attachments.
func (c *Client) served(list *libcni.NetworkConfigList) []string {
	types := []string{}
	for _, plugin := range list.Plugins {
		if name := plugin.Network.Type; c.runner.serves(name) && !slices.Contains(types, name) {
			types = append(types, name)
		}
	}
	return types
}

// runnerOf returns a runner by which an attachment is checked and detached: what made it
// does that, whatever is configured by then.
func (c *Client) runnerOf(rec *record) *runner {
	if rec.Served == nil {
		return c.runner // there is no record, or none of who made it
	}
	return c.runner.serving(rec.Served, nil)
}

// libBy is the library with another runner.
func (c *Client) libBy(runner *runner) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(c.BinDirs(), c.cacheDir, runner)
}

// Del detaches a pod: it calls DEL on every plugin of the chain that the pod was
// attached with, the last one first, even if others fail. Without a record it uses
// the configuration current, if that is not nil. It is idempotent, and should be
// repeated after an error.
func (c *Client) Del(ctx context.Context, current *Config, a Attachment) error {
	// A repair that is under way must not bring back what this call removes. One that
	// takes too long is not waited for.
	held, err := c.records.hold(ctx, a.ID, c.runner.grace)
	if err != nil {
		return err
	}
	if held != nil {
		defer held.Close()
	}
	rec, err := c.records.load(a.ID)
	if err != nil {
		return err
	}

	var list *libcni.NetworkConfigList
	switch {
	case rec != nil:
		if list, err = libcni.NetworkConfFromBytes(rec.Config); err != nil {
			return fmt.Errorf("read configuration of attachment: %w", err)
		}
	case current != nil:
		list = current.list
		rec = &record{ID: a.ID, IfName: c.ifName, Args: a.Args, Capabilities: a.Capabilities}
	default:
		return nil
	}

	// Without a result, plugins of an interrupted ADD may still be running.
	rt := runtimeConf(rec, a.NetNS)
	prev := c.previous(list, rt)
	if prev == nil {
		if err := c.records.await(ctx, a.ID, c.runner.grace); err != nil {
			return err
		}
	}

	var errs []error
	runner := c.runnerOf(rec)
	for _, plugin := range slices.Backward(list.Plugins) {
		if err := c.delOne(ctx, runner, list, plugin, prev, rt); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}

	return c.forget(ctx, list, rt)
}

// previous returns the result of the ADD, or nil if it is unknown or the
// configuration's version does not pass results to DEL.
func (c *Client) previous(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) types.Result {
	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err != nil || !ok {
		return nil
	}
	return c.cached(list, rt)
}

// cached returns the result of the ADD in any version, or nil if it is unknown.
func (c *Client) cached(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (known types.Result) {
	// A result that an earlier release cached without checkLists may have a null
	// in a list, for which libcni panics. DEL works without it.
	defer func() {
		if recover() != nil {
			known = nil
		}
	}()

	result, err := c.dirs.Load().lib.GetNetworkListCachedResult(list, rt)
	if err != nil {
		return nil
	}
	return result
}

// delOne calls DEL on one plugin.
func (c *Client) delOne(ctx context.Context, runner *runner, list *libcni.NetworkConfigList, plugin *libcni.PluginConfig, prev types.Result, rt *libcni.RuntimeConf) error {
	ctx, cancel := context.WithTimeout(ctx, delTimeout)
	defer cancel()

	path, err := runner.FindInPath(plugin.Network.Type, c.BinDirs())
	if err != nil {
		return err
	}

	conf, err := configure(list, plugin, prev, rt)
	if err != nil {
		return err
	}

	return invoke.ExecPluginWithoutResult(ctx, path, conf, &invoke.Args{
		Command: "DEL", ContainerID: rt.ContainerID, NetNS: rt.NetNS, PluginArgs: rt.Args,
		IfName: rt.IfName, Path: strings.Join(c.BinDirs(), string(os.PathListSeparator)),
	}, runner)
}

// configure returns the configuration that a plugin of a list receives.
func configure(list *libcni.NetworkConfigList, plugin *libcni.PluginConfig, prev types.Result, rt *libcni.RuntimeConf) ([]byte, error) {
	add := map[string]any{"name": list.Name, "cniVersion": list.CNIVersion}
	if prev != nil {
		add["prevResult"] = prev
	}

	declared := map[string]any{}
	for capability, args := range rt.CapabilityArgs {
		if plugin.Network.Capabilities[capability] {
			declared[capability] = args
		}
	}
	if len(declared) > 0 {
		add["runtimeConfig"] = declared
	}

	conf, err := libcni.InjectConf(plugin, add)
	if err != nil {
		return nil, fmt.Errorf("plugin %s: configure: %w", plugin.Network.Type, err)
	}
	return conf.Bytes, nil
}

// Calls returns the call with a verb that each plugin of a type in the chain of an
// attachment would receive, with its result also where the configuration's version does
// not pass that. There are none without a record.
func (c *Client) Calls(id, plugin, verb string) ([]BuiltinCall, error) {
	rec, err := c.records.load(id)
	if err != nil || rec == nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(rec.Config)
	if err != nil {
		return nil, fmt.Errorf("read configuration of attachment: %w", err)
	}

	rt := runtimeConf(rec, rec.NetNS)
	prev := c.cached(list, rt)
	var args []string
	for _, arg := range rec.Args {
		args = append(args, arg[0]+"="+arg[1])
	}
	var calls []BuiltinCall
	for _, one := range list.Plugins {
		if one.Network.Type != plugin {
			continue
		}
		conf, err := configure(list, one, prev, rt)
		if err != nil {
			return nil, err
		}
		calls = append(calls, BuiltinCall{
			Command: verb, ID: rec.ID, NetNS: rec.NetNS, IfName: rec.IfName, Args: strings.Join(args, ";"), Config: conf,
		})
	}
	return calls, nil
}

// forget removes the record and the cached result of an attachment.
func (c *Client) forget(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	// Given a list without plugins, libcni only drops its cached result.
	empty := &libcni.NetworkConfigList{Name: list.Name, CNIVersion: list.CNIVersion}
	return errors.Join(c.dirs.Load().lib.DelNetworkList(ctx, empty, rt), c.records.remove(rt.ContainerID))
}

// Check asks the plugins whether an attachment is intact. It passes without a
// record, and if the configuration disables CHECK.
func (c *Client) Check(ctx context.Context, id string) error {
	rec, err := c.records.load(id)
	if err != nil || rec == nil {
		return err
	}

	list, err := libcni.NetworkConfFromBytes(rec.Config)
	if err != nil {
		return fmt.Errorf("read configuration of attachment: %w", err)
	}

	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err != nil || !ok {
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, addTimeout)
	defer cancel()
	return concise(c.libBy(c.runnerOf(rec)).CheckNetworkList(ctx, list, runtimeConf(rec, rec.NetNS)))
}

// Status returns nil if pods can be attached: all plugins exist and, with version
// 1.1 of the specification, report that they are ready.
func (c *Client) Status(ctx context.Context, conf *Config) error {
	if err := c.Complete(conf); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return concise(c.dirs.Load().lib.GetStatusNetworkList(ctx, conf.list))
}

// Complete returns [ErrNoPlugin] unless the programs of all plugins exist, and
// [ErrInvalidConfig] if one without a program refuses its configuration.
func (c *Client) Complete(conf *Config) error {
	var chain [][]byte
	for _, plugin := range conf.list.Plugins {
		name := plugin.Network.Type
		full, err := configure(conf.list, plugin, nil, &libcni.RuntimeConf{})
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrInvalidConfig, conf.File, err)
		}
		if !c.runner.serves(name) {
			if _, err := c.runner.FindInPath(name, c.BinDirs()); err != nil {
				return err
			}
		} else if err := c.runner.builtins[name].Validate(full, chain); err != nil {
			return fmt.Errorf("%w: %s: plugin %s: %w", ErrInvalidConfig, conf.File, name, err)
		}
		chain = append(chain, full)
	}
	return nil
}

// Attached returns the IDs of all pods with a recorded attachment.
func (c *Client) Attached() ([]string, error) { return c.records.list() }

// NetNS returns the namespace path of a recorded attachment, or "".
func (c *Client) NetNS(id string) string {
	if rec, err := c.records.load(id); err == nil && rec != nil {
		return rec.NetNS
	}
	return ""
}

// GC passes the IDs of valid attachments to the plugins, so that they release what
// belongs to any other. valid and others must contain all of them, including those of
// other runtimes on the machine.
func (c *Client) GC(ctx context.Context, conf *Config, valid []string, others []types.GCAttachment) error {
	args := &libcni.GCArgs{ValidAttachments: append([]types.GCAttachment{}, others...)}
	for _, id := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: c.ifName})
	}
	ctx, cancel := context.WithTimeout(ctx, addTimeout)
	defer cancel()
	return c.dirs.Load().lib.GCNetworkList(ctx, conf.list, args)
}

func runtimeConf(rec *record, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: rec.ID, NetNS: netns, IfName: rec.IfName,
		Args: rec.Args, CapabilityArgs: rec.Capabilities,
	}
}

// concise removes libcni's wrapping of a plugin's error, which already names the
// plugin and the command.
func concise(err error) error {
	var failure *PluginError
	if errors.As(err, &failure) {
		return failure
	}
	return err
}
