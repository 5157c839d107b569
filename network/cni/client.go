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
)

// statusTimeout is short because kubelet asks every few seconds.
const statusTimeout = 5 * time.Second

// Client runs plugins found in some directories and remembers what it attached.
type Client struct {
	binDirs  []string
	cacheDir string
	ifName   string
	records  records
	lib      *libcni.CNIConfig
	runner   *runner
}

// Attachment is a pod's connection to a network, as plugins see it.
type Attachment struct {
	// ID is the container id of the CNI specification: the pod's.
	ID string
	// NetNS is the path of the namespace. For DEL it may be empty.
	NetNS string
	// Args are passed in CNI_ARGS.
	Args [][2]string
	// Capabilities are arguments by capability. A plugin gets those that its
	// configuration declares.
	Capabilities map[string]any
}

// NewClient returns a client that looks for plugins in binDirs, names the
// pods' interface ifName and keeps its memory in cacheDir. Clients with the
// same cacheDir must not exist at the same time.
func NewClient(binDirs []string, cacheDir, ifName string) (*Client, error) {
	c := &Client{
		binDirs:  binDirs,
		cacheDir: cacheDir,
		ifName:   ifName,
		records:  records{filepath.Join(cacheDir, "attachments")},
		runner:   &runner{grace: killGrace, run: runGroup},
	}

	c.lib = libcni.NewCNIConfigWithCacheDir(binDirs, cacheDir, c.runner)
	if err := os.MkdirAll(c.records.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make attachment directory: %w", err)
	}

	if err := durable.RemoveTemps(c.records.dir); err != nil {
		return nil, fmt.Errorf("sweep attachment directory: %w", err)
	}
	return c, nil
}

// RunBy has plugins run by a function in place of processes of their own: a
// test that makes thousands of calls cannot wait for these. It is called
// before anything else.
func (c *Client) RunBy(run Run) { c.runner.run = run }

// Add attaches a pod. When a plugin fails, or ctx ends, everything is taken
// back by DEL before Add returns; if that fails too, the attachment is
// remembered for a later [Client.Del].
func (c *Client) Add(ctx context.Context, conf *Config, a Attachment) (*types100.Result, error) {
	rec := &record{
		Version: recordVersion, ID: a.ID, NetNS: a.NetNS, IfName: c.ifName,
		Args: a.Args, Capabilities: a.Capabilities, Config: conf.Bytes(),
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
	runner := &runner{grace: c.runner.grace, lock: lock, run: c.runner.run}
	answer, err := libcni.NewCNIConfigWithCacheDir(c.binDirs, c.cacheDir, runner).AddNetworkList(ctx, conf.list, rt)
	if err != nil {
		return nil, concise(err)
	}

	result, err := types100.GetResult(answer)
	if err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	return result, nil
}

// Del detaches a pod: it calls DEL on every plugin of the chain that the pod
// was attached with, last one first, whatever the others answer. Without
// memory of an attachment it goes by current, if that is not nil. It can be
// repeated; after an error it should be.
func (c *Client) Del(ctx context.Context, current *Config, a Attachment) error {
	rec, err := c.records.load(a.ID)
	if err != nil {
		return err
	}

	var list *libcni.NetworkConfigList
	if rec != nil {
		if list, err = libcni.NetworkConfFromBytes(rec.Config); err != nil {
			return fmt.Errorf("read configuration of attachment: %w", err)
		}
	} else if current != nil {
		list = current.list
		rec = &record{ID: a.ID, IfName: c.ifName, Args: a.Args, Capabilities: a.Capabilities}
	} else {
		return nil
	}

	rt := runtimeConf(rec, a.NetNS)
	prev := c.previous(list, rt)
	if prev == nil {
		if err := c.records.await(ctx, a.ID, c.runner.grace); err != nil {
			return err
		}
	}

	var errs []error
	for _, plugin := range slices.Backward(list.Plugins) {
		if err := c.delOne(ctx, list, plugin, prev, rt); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}

	return c.forget(ctx, list, rt)
}

// previous returns the result of the ADD, or nil when it is not known or the
// version of the configuration does not provide for it.
func (c *Client) previous(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (known types.Result) {
	// A result that was cached before answers were checked may have a null in
	// a list, over which libcni panics; a DEL does without it.
	defer func() {
		if recover() != nil {
			known = nil
		}
	}()

	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err != nil || !ok {
		return nil
	}
	result, err := c.lib.GetNetworkListCachedResult(list, rt)
	if err != nil {
		return nil
	}

	return result
}

// delOne calls DEL on one plugin.
func (c *Client) delOne(ctx context.Context, list *libcni.NetworkConfigList, plugin *libcni.PluginConfig, prev types.Result, rt *libcni.RuntimeConf) error {
	ctx, cancel := context.WithTimeout(ctx, delTimeout)
	defer cancel()
	path, err := c.runner.FindInPath(plugin.Network.Type, c.binDirs)
	if err != nil {
		return err
	}

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
		return fmt.Errorf("plugin %s: configure: %w", plugin.Network.Type, err)
	}

	return invoke.ExecPluginWithoutResult(ctx, path, conf.Bytes, &invoke.Args{
		Command: "DEL", ContainerID: rt.ContainerID, NetNS: rt.NetNS, PluginArgs: rt.Args,
		IfName: rt.IfName, Path: strings.Join(c.binDirs, string(os.PathListSeparator)),
	}, c.runner)
}

// forget drops what is remembered of an attachment.
func (c *Client) forget(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	// A list without plugins is how libcni is told to drop its result.
	empty := &libcni.NetworkConfigList{Name: list.Name, CNIVersion: list.CNIVersion}
	return errors.Join(c.lib.DelNetworkList(ctx, empty, rt), c.records.remove(rt.ContainerID))
}

// Check asks the plugins whether an attachment is as they made it. An
// attachment that is not remembered, or whose configuration rules CHECK out,
// passes.
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
	return concise(c.lib.CheckNetworkList(ctx, list, runtimeConf(rec, rec.NetNS)))
}

// Status tells whether pods can be attached: all plugins are there and, with
// version 1.1 of the specification, say so.
func (c *Client) Status(ctx context.Context, conf *Config) error {
	if err := c.Complete(conf); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return concise(c.lib.GetStatusNetworkList(ctx, conf.list))
}

// Complete looks whether all plugins of a configuration are there
// ([ErrNoPlugin]).
func (c *Client) Complete(conf *Config) error {
	for _, plugin := range conf.list.Plugins {
		if _, err := c.runner.FindInPath(plugin.Network.Type, c.binDirs); err != nil {
			return err
		}
	}
	return nil
}

// Attached returns the ids of all pods whose attachment is remembered.
func (c *Client) Attached() ([]string, error) { return c.records.list() }

// NetNS returns the namespace path that a remembered attachment was made
// with, or "".
func (c *Client) NetNS(id string) string {
	if rec, err := c.records.load(id); err == nil && rec != nil {
		return rec.NetNS
	}
	return ""
}

// GC tells the plugins which attachments to their network are valid, so that
// they release what belongs to any other. valid must name all of them, those
// of other runtimes on the machine included.
func (c *Client) GC(ctx context.Context, conf *Config, valid []string) error {
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, id := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: c.ifName})
	}
	ctx, cancel := context.WithTimeout(ctx, addTimeout)
	defer cancel()
	return c.lib.GCNetworkList(ctx, conf.list, args)
}

func runtimeConf(rec *record, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: rec.ID, NetNS: netns, IfName: rec.IfName,
		Args: rec.Args, CapabilityArgs: rec.Capabilities,
	}
}

// concise drops what libcni puts around a plugin's error, which names the
// plugin and the command itself.
func concise(err error) error {
	var answer *PluginError
	if errors.As(err, &answer) {
		return answer
	}
	return err
}
