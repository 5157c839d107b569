package network

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"crisp/network/cni"
	"crisp/network/own"
)

// Inspector looks at what a network attached, by its records. It may be used while a
// daemon runs, and without one.
type Inspector struct {
	options Options
	client  *cni.Client
	own     *own.Plugin
}

// Inspect returns an inspector of the network that the options describe, in the network
// namespace of the calling thread. It makes nothing.
func Inspect(o Options) (*Inspector, error) {
	if o.IfName == "" {
		o.IfName = DefaultIfName
	}
	plugin, err := own.Open(false)
	if err != nil {
		return nil, fmt.Errorf("inspect network: %w", err)
	}
	i := &Inspector{options: o, own: plugin}
	i.client = cni.NewReader(o.BinDirs, o.CacheDir, o.IfName, builtinsOf(plugin, o.Builtins))
	return i, nil
}

// Close closes the connections to the kernel.
func (i *Inspector) Close() error { return i.own.Close() }

// Show returns the attachments to crisp's own network: all, or those of one pod, which
// is NAMESPACE/NAME, NAME, or the beginning of its ID.
func (i *Inspector) Show(pod string) ([]own.State, error) {
	calls, err := ownCalls(i.client)
	if err != nil {
		return nil, fmt.Errorf("show network: %w", err)
	}
	all, err := i.own.Inspect(calls)
	if err != nil {
		return nil, fmt.Errorf("show network: %w", err)
	}

	list := []own.State{}
	for _, s := range all {
		if pod == "" || pod == s.Name || pod == s.Namespace+"/"+s.Name || strings.HasPrefix(s.ID, pod) {
			list = append(list, s)
		}
	}
	return list, nil
}

// ownCalls are the calls of CHECK for all recorded attachments to crisp's own network.
func ownCalls(client *cni.Client) ([]own.Call, error) {
	ids, err := client.Attached()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nothing was ever attached
	}
	if err != nil {
		return nil, err
	}

	var all []own.Call
	for _, id := range ids {
		calls, err := client.Calls(id, own.Type, "CHECK")
		if err != nil {
			return nil, fmt.Errorf("read record of %s: %w", id, err)
		}
		for _, call := range calls {
			all = append(all, ownCall(own.Type, call))
		}
	}
	return all, nil
}
