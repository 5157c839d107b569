package own

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"

	"crisp/network/netns"
	"crisp/network/own/link"
	"crisp/runtime/durable"
)

const (
	// tuningDir is where the reference plugin keeps what interfaces were before.
	tuningDir = "/run/cni/tuning"
	// tuningAllowed lists patterns of the sysctls that may be set, a line each. Without
	// the file, all of the network may be.
	tuningAllowed = "/etc/cni/tuning/allowlist.conf"
)

// tuningConf is a configuration of the reference plugin tuning.
type tuningConf struct {
	shared
	attributes
	DataDir string     `json:"dataDir"`
	Args    tuningArgs `json:"args"`
}

// tuningArgs are arguments in the configuration, which come before all else.
type tuningArgs struct {
	CNI attributes `json:"cni"`
}

// attributes are what is tuned.
type attributes struct {
	Sysctls      map[string]string `json:"sysctl"`
	MAC          *string           `json:"mac"`
	Promiscuous  *bool             `json:"promisc"`
	MTU          *int              `json:"mtu"`
	AllMulticast *bool             `json:"allmulti"`
	QueueLength  *int              `json:"txQLen"`
}

// readTuning reads the configuration of a call, and merges all that asks for something.
func readTuning(call Call, strict bool) (*tuningConf, error) {
	c := &tuningConf{}
	if err := decode(call.Config, c, strict); err != nil {
		return nil, err
	}
	c.DataDir = cmp.Or(c.DataDir, tuningDir)
	if !strict {
		return c, nil
	}

	args, err := parseArgs(call.Args)
	if err != nil {
		return nil, err
	}
	for _, mac := range []string{string(args.MAC), c.Runtime.MAC} {
		if mac != "" {
			c.MAC = &mac
		}
	}
	c.merge(c.Args.CNI)
	if err := c.check(); err != nil {
		return nil, invalid(err)
	}
	return c, c.checked()
}

// merge replaces what others ask for.
func (a *attributes) merge(by attributes) {
	if len(by.Sysctls) > 0 {
		all := maps.Clone(a.Sysctls)
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, by.Sysctls)
		a.Sysctls = all
	}
	a.MAC, a.Promiscuous, a.MTU = cmp.Or(by.MAC, a.MAC), cmp.Or(by.Promiscuous, a.Promiscuous), cmp.Or(by.MTU, a.MTU)
	a.AllMulticast, a.QueueLength = cmp.Or(by.AllMulticast, a.AllMulticast), cmp.Or(by.QueueLength, a.QueueLength)
}

func (c *tuningConf) check() error {
	for name := range c.Sysctls {
		if err := link.CheckSysctl(name); err != nil {
			return err
		}
	}
	switch mtu, length := c.MTU, c.QueueLength; {
	case mtu != nil && (*mtu < 0 || *mtu > 65535):
		return fmt.Errorf("mtu %d is not between 0 (unchanged) and 65535", *mtu)
	case length != nil && *length < 0:
		return fmt.Errorf("txQLen %d is negative", *length)
	case !filepath.IsAbs(c.DataDir):
		return fmt.Errorf("dataDir %q is not an absolute path", c.DataDir)
	}
	if _, err := c.tuning(); err != nil {
		return err
	}
	return allow(tuningAllowed, c.Sysctls)
}

// tuning is what is to be done.
func (c *tuningConf) tuning() (link.Tuning, error) {
	t := link.Tuning{Sysctls: c.Sysctls, AllMulticast: c.AllMulticast, QueueLength: c.QueueLength}
	if c.MTU != nil {
		t.MTU = *c.MTU
	}
	t.Promiscuous = c.Promiscuous != nil && *c.Promiscuous
	if c.MAC == nil || *c.MAC == "" {
		return t, nil
	}
	var err error
	if t.MAC, err = net.ParseMAC(*c.MAC); err != nil {
		return link.Tuning{}, fmt.Errorf("mac: %w", err)
	}
	return t, nil
}

// allow refuses sysctls that the node's administrator does not allow.
func allow(file string, wanted map[string]string) error {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read which sysctls are allowed: %w", err)
	}
	var patterns []*regexp.Regexp
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		pattern, err := regexp.Compile(line)
		if err != nil {
			return fmt.Errorf("read which sysctls are allowed: %s: %w", file, err)
		}
		patterns = append(patterns, pattern)
	}

	for name := range wanted {
		if !slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(name) }) {
			return fmt.Errorf("sysctl %s is none of those that %s allows", name, file)
		}
	}
	return nil
}

// tuning answers calls of the plugin tuning.
func tuning(call Call) ([]byte, error) {
	if err := utils.ValidateContainerID(call.ID); call.Command != "STATUS" && call.Command != "GC" && err != nil {
		return nil, err
	}
	switch call.Command {
	case "ADD":
		return addTuning(call)
	case "DEL":
		return nil, delTuning(call)
	case "CHECK":
		return nil, checkTuning(call)
	default:
		return nil, nil
	}
}

// backup is the file in which an interface's attributes are kept, as the reference plugin
// names it.
func (c *tuningConf) backup(call Call) string {
	return filepath.Join(c.DataDir, call.ID+"_"+filepath.Base(call.IfName)+".json")
}

func addTuning(call Call) ([]byte, error) {
	c, err := readTuning(call, true)
	if err != nil {
		return nil, err
	}
	result, err := c.previousResult()
	if err != nil {
		return nil, err
	}
	t, err := c.tuning()
	if err != nil {
		return nil, invalid(err)
	}
	pod, err := openPod(call)
	if err != nil {
		return nil, err
	}
	defer pod.Close()

	// An interface of the node that was lent is given back as it was.
	before, changes, err := t.Before(pod, call.IfName)
	if err != nil {
		return nil, err
	}
	if changes {
		if err := c.keep(call, before); err != nil {
			return nil, fmt.Errorf("keep what the interface was: %w", err)
		}
	}
	if err := t.Apply(pod, call.IfName); err != nil {
		return nil, err
	}

	if t.MAC != nil {
		for _, i := range result.Interfaces {
			if i.Name == call.IfName {
				i.Mac = *c.MAC
			}
		}
	}
	return printed(result, c.CNIVersion)
}

// keep writes what an interface was.
func (c *tuningConf) keep(call Call, before link.Untuned) error {
	data, err := json.Marshal(before)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return err
	}
	return durable.ReplaceFile(c.backup(call), data, 0o600)
}

// delTuning restores the interface, if there still is one.
func delTuning(call Call) error {
	c, err := readTuning(call, false)
	if err != nil {
		return err
	}
	file := c.backup(call)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what the interface was: %w", err)
	}

	// Torn in a power cut, after which there is no such interface.
	var before link.Untuned
	if json.Unmarshal(data, &before) == nil && call.NetNS != "" {
		// A pod may keep its interface from being changed (a device on top of it does), and
		// must not keep itself from being detached: as with the program, this is not an
		// error.
		_ = restore(call, before)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what the interface was: %w", err)
	}
	return nil
}

func restore(call Call, before link.Untuned) error {
	pod, err := netns.Open(call.NetNS)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, netns.ErrNotNamespace) {
		return nil // gone with its interface
	}
	if err != nil {
		return err
	}
	defer pod.Close()
	return before.Restore(pod, call.IfName)
}

func checkTuning(call Call) error {
	c, err := readTuning(call, true)
	if err != nil {
		return err
	}
	if _, err := c.previousResult(); err != nil {
		return err
	}
	t, err := c.tuning()
	if err != nil {
		return invalid(err)
	}
	pod, err := openPod(call)
	if err != nil {
		return err
	}
	defer pod.Close()
	return t.Check(pod, call.IfName)
}
