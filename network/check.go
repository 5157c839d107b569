package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"crisp/network/cni"
	"crisp/network/own"
)

// Check says what is wrong with the network: of crisp's own in detail, and of other
// plugins what they answer to CHECK. How says what is repaired.
type Check struct {
	// Repair repairs what can be repaired without a risk.
	Repair bool
	// Sole says that no other runtime or daemon has pods in the networks.
	Sole bool
}

// Check examines the network. It may be called while a daemon runs.
func (i *Inspector) Check(ctx context.Context, how Check) ([]own.Finding, error) {
	conf, err := i.config()
	return examine(ctx, i.options, i.client, i.own, conf, err, how)
}

// config returns the configuration for new pods, nil if the node has none and needs
// none.
func (i *Inspector) config() (*cni.Config, error) {
	conf, err := cni.Load(i.options.ConfDir)
	if !errors.Is(err, cni.ErrNoConfig) || !i.options.Default {
		return conf, err
	}
	conf, err = cni.LoadFile(filepath.Join(i.options.CacheDir, defaultFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it is written for the first pod
	}
	return conf, err
}

// Check examines the network.
func (n *Network) Check(ctx context.Context, how Check) ([]own.Finding, error) {
	done, err := n.begin()
	if err != nil {
		return nil, fmt.Errorf("check network: %w", err)
	}
	defer done()
	if n.own == nil {
		return nil, nil
	}
	conf, err := n.config()
	return examine(ctx, n.options, n.client, n.own, conf, err, how)
}

// examine examines the network with a configuration for new pods, or why there is none.
func examine(ctx context.Context, o Options, client *cni.Client, plugin *own.Plugin, conf *cni.Config, confErr error, how Check) ([]own.Finding, error) {
	var findings []own.Finding
	if confErr == nil && conf != nil {
		confErr = client.Complete(conf)
	}
	switch {
	case confErr != nil:
		conf = nil
		findings = append(findings, own.Finding{
			Level: own.LevelFail, About: "configuration", Text: confErr.Error(), Advice: "no pod can be attached until this is mended",
		})
	case conf != nil:
		findings = append(findings, own.Finding{Level: own.LevelOK, About: "configuration", Text: conf.File + " has the network " + conf.Name()})
	}

	others, err := checkOthers(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("check network: %w", err)
	}
	findings = append(findings, others...)
	e, err := examination(o, client, conf, how)
	if err != nil {
		return nil, fmt.Errorf("check network: %w", err)
	}
	found, err := plugin.Examine(ctx, e)
	if err != nil {
		err = fmt.Errorf("check network: %w", err)
	}
	return append(findings, found...), err
}

// examination is what package own has to know.
func examination(o Options, client *cni.Client, conf *cni.Config, how Check) (own.Examination, error) {
	foreign, err := o.cached()
	if err != nil {
		return own.Examination{}, err
	}
	e := own.Examination{
		Attached: func() ([]own.Call, error) { return ownCalls(client) },
		Hold:     client.Hold,
		Private:  func(dir string) bool { return isBelow(dir, o.CacheDir) },
		Foreign: func(network, id string) bool {
			// A record may be of another plugin's, or torn: its pod exists all the same.
			// Asked for after everything was listed.
			if own, err := client.Attached(); slices.Contains(own, id) || err != nil && !errors.Is(err, fs.ErrNotExist) {
				return true
			}
			return slices.ContainsFunc(foreign[network], func(a types.GCAttachment) bool { return a.ContainerID == id })
		},
		Sole: how.Sole, Repair: how.Repair,
	}

	if conf == nil {
		return e, nil
	}
	e.Configs, err = conf.Plugins(own.Type)
	return e, err
}

// isBelow reports whether a directory is inside another one.
func isBelow(dir, parent string) bool {
	rel, err := filepath.Rel(parent, dir)
	return dir != "" && err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// cached lists what other runtimes have attached.
func (o *Options) cached() (map[string][]types.GCAttachment, error) {
	return cni.Cached(cmp.Or(o.CommonCache, cni.CommonCache))
}

// checkOthers asks plugins other than crisp's own for the attachments they made.
func checkOthers(ctx context.Context, client *cni.Client) ([]own.Finding, error) {
	ids, err := client.Attached()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}

	var findings []own.Finding
	intact := 0
	for _, id := range ids {
		calls, err := client.Calls(id, own.Type, "CHECK")
		if err != nil || len(calls) > 0 {
			continue // examined in detail
		}
		release, ok := client.Hold(ctx, id)
		if !ok {
			continue
		}
		err = client.Check(ctx, id)
		release()
		if err == nil {
			intact++
			continue
		}
		findings = append(findings, own.Finding{
			Level: own.LevelFail, About: "pod " + id, Text: err.Error(), Advice: "recreate the pod, if what the plugin reports does not pass",
		})
	}
	if intact > 0 {
		findings = append(findings, own.Finding{Level: own.LevelOK, About: "pods", Text: fmt.Sprintf("the plugins of %d report nothing", intact)})
	}
	return findings, nil
}
