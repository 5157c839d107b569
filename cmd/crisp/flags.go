package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"crisp/cri/config"
)

// override is a command-line flag that replaces a key of the configuration.
type override struct {
	name, usage string
	set         func(c *config.Config, value string)
}

var overrides = []override{
	{"root", "`DIR` for images, writable layers and records", func(c *config.Config, v string) { c.Root = v }},
	{"state", "runtime state `DIR`", setState},
	{"listen", "`SOCKET` to serve on, unix:///PATH", func(c *config.Config, v string) { c.Listen = strings.TrimPrefix(v, "unix://") }},
	{"cni-conf-dir", "`DIR` with CNI configurations", func(c *config.Config, v string) { c.CNIConfDir = v }},
	{"cni-bin-dir", "`DIRS` with CNI plugins, separated by commas", func(c *config.Config, v string) { c.CNIBinDirs = strings.Split(v, ",") }},
	{"registry-config-dir", "`DIRS` with hosts.toml files, separated by commas", func(c *config.Config, v string) { c.RegistryConfigDirs = strings.Split(v, ",") }},
	{"cgroup-driver", "the cgroup `DRIVER`: cgroupfs or systemd", func(c *config.Config, v string) { c.CgroupDriver = v }},
	{"log-level", "the minimum log `LEVEL`: error, info, debug or trace", func(c *config.Config, v string) { c.LogLevel = v }},
	{"log-format", "the log `FORMAT`: text or json", func(c *config.Config, v string) { c.LogFormat = v }},
}

// setState moves what is in the state directory unless it was configured
// elsewhere.
func setState(c *config.Config, dir string) {
	if c.NetNSDir == "" || c.NetNSDir == config.DefaultNetNSDir(c.State) {
		c.NetNSDir = config.DefaultNetNSDir(dir)
	}
	if c.Listen == config.Default().Listen {
		c.Listen = filepath.Join(dir, "crisp.sock")
	}
	c.State = dir
}

// load reads the configuration that a command's arguments select, and returns
// the arguments left over.
func load(command string, args []string) (*config.Config, []string, error) {
	return loadWith(command, args, func(*flag.FlagSet) {})
}

// loadWith is load for a command with additional flags.
func loadWith(command string, args []string, more func(*flag.FlagSet)) (*config.Config, []string, error) {
	l, err := parse(command, args, more)
	if err != nil {
		return nil, nil, err
	}
	c, err := l.load()
	return c, l.fs.Args(), err
}

// commandLine is one that was parsed.
type commandLine struct {
	fs     *flag.FlagSet
	path   *string
	values map[string]*string // of the overrides, by name
}

func parse(command string, args []string, more func(*flag.FlagSet)) (*commandLine, error) {
	fs := flag.NewFlagSet(command, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	l := &commandLine{fs, fs.String("config", config.DefaultPath, "the `FILE` with the configuration"), map[string]*string{}}
	for _, o := range overrides {
		l.values[o.name] = fs.String(o.name, "", o.usage)
	}

	more(fs)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, helpText(usage + "\nflags of crisp " + command + ":\n" + described(fs))
		}
		return nil, fmt.Errorf("%w\n%s", err, usage)
	}

	return l, nil
}

// load reads the configuration that the command line selects.
func (l *commandLine) load() (*config.Config, error) {
	c, err := config.Load(*l.path)
	if err != nil {
		return nil, err
	}

	given := map[string]bool{}
	l.fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for _, o := range overrides {
		if given[o.name] {
			o.set(c, *l.values[o.name])
		}
	}

	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("configuration with the command line's flags: %w", err)
	}
	return c, nil
}

// described describes each flag.
func described(fs *flag.FlagSet) string {
	var b strings.Builder
	fs.SetOutput(&b)
	fs.PrintDefaults()
	return b.String()
}

// configure is the command config.
func configure(args []string, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("config needs a command: check or default\n%s", usage)
	}
	switch args[0] {
	case "default":
		_, err := io.WriteString(out, config.Text())
		return err
	case "check":
		return checkFile(args[1:], out)
	default:
		if asksForHelp(args[0]) {
			return helpText(usage)
		}
		return fmt.Errorf("unknown command config %q: check or default\n%s", args[0], usage)
	}
}

// checkFile is the command config check, whose file may be given without its
// flag: no other one is read then.
func checkFile(args []string, out io.Writer) error {
	const command = "config check"
	none := func(*flag.FlagSet) {}
	l, err := parse(command, args, none)
	if err == nil && l.fs.NArg() > 0 {
		rest := l.fs.Args()
		flags := args[:len(args)-len(rest)]
		l, err = parse(command, slices.Concat(flags, []string{"--config", rest[0]}, rest[1:]), none)
	}
	if err != nil {
		return err
	}

	if l.fs.NArg() > 0 {
		return fmt.Errorf("config check takes one file, got %q too\n%s", l.fs.Args(), usage)
	}
	c, err := l.load()
	if err != nil {
		return err
	}

	return checkConfig(c, out)
}
