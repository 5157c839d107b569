package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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

// settings are the flags that select a configuration.
type settings struct {
	fs     *pflag.FlagSet
	path   string
	values map[string]*string // of the overrides, by name
}

// newSettings adds the flags to those of a command.
func newSettings(fs *pflag.FlagSet) *settings {
	s := &settings{fs: fs, values: map[string]*string{}}
	fs.StringVar(&s.path, "config", config.DefaultPath, "the `FILE` with the configuration")
	for _, o := range overrides {
		s.values[o.name] = fs.String(o.name, "", o.usage)
	}
	return s
}

// load reads the configuration that the command line selects.
func (s *settings) load() (*config.Config, error) {
	c, err := config.Load(s.path)
	if err != nil {
		return nil, err
	}

	for _, o := range overrides {
		if s.fs.Changed(o.name) {
			o.set(c, *s.values[o.name])
		}
	}

	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("configuration with the command line's flags: %w", err)
	}
	return c, nil
}

// configured is a command that reads the configuration, with what it runs.
func configured(cmd *cobra.Command, run func(ctx context.Context, cfg *config.Config, args []string, out io.Writer) error) *cobra.Command {
	s := newSettings(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := s.load()
		if err != nil {
			return err
		}
		return run(cmd.Context(), cfg, args, cmd.OutOrStdout())
	}
	return cmd
}

// group is a command that only has others below it.
func group(name, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, SuggestionsMinimumDistance: 2, Args: cobra.ArbitraryArgs, DisableFlagsInUseLine: true}
	cmd.AddCommand(commands...)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return wrong(cmd, fmt.Errorf("%s needs a command: %s", cmd.CommandPath(), strings.Join(names(cmd), ", ")))
		}
		if args[0] == "help" {
			return cmd.Help()
		}

		hint := ""
		if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
			hint = ", did you mean " + strings.Join(like, " or ") + "?"
		}
		return wrong(cmd, fmt.Errorf("unknown command %q of %s%s", args[0], cmd.CommandPath(), hint))
	}
	return cmd
}

// names are those of the commands below one.
func names(cmd *cobra.Command) []string {
	var list []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			list = append(list, c.Name())
		}
	}
	return list
}

// wrong is the error of a command line that cannot be understood.
func wrong(cmd *cobra.Command, err error) error {
	return fmt.Errorf("%w\n%s --help describes the command line", err, cmd.CommandPath())
}

// exactly accepts so many arguments, which are described in words.
func exactly(count int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != count {
			return wrong(cmd, fmt.Errorf("%s takes %s, got %q", cmd.CommandPath(), what, args))
		}
		return nil
	}
}

// upTo accepts at most so many arguments.
func upTo(count int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > count {
			return wrong(cmd, fmt.Errorf("%s takes %s, got %q", cmd.CommandPath(), what, args))
		}
		return nil
	}
}

// doubled gives the flags of commands that once accepted one dash, -root DIR, the
// two that they have now.
func doubled(args []string) []string {
	once := []string{"serve", "plan", "run", "images", "network", "config"}
	flags := []string{"config", "repair", "subnet", "cluster", "mode", "help"}
	for _, o := range overrides {
		flags = append(flags, o.name)
	}
	if len(args) == 0 || !slices.Contains(once, args[0]) {
		return args
	}

	out := slices.Clone(args)
	for i, word := range out {
		if word == "--" {
			break
		}
		name, _, _ := strings.Cut(word, "=")
		if strings.HasPrefix(word, "-") && slices.Contains(flags, name[1:]) {
			out[i] = "-" + word
		}
	}
	return out
}
