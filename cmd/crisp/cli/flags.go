// Package cli has what all commands of crisp share: groups of them, the errors of
// command lines that cannot be understood, and the flags that select a
// configuration.
package cli

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

// Override is a command-line flag that replaces a key of the configuration.
type Override struct {
	Name, Usage string
	set         func(c *config.Config, value string)
}

// Overrides are the flags that replace keys.
func Overrides() []Override {
	return []Override{
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

// Settings are the flags that select a configuration.
type Settings struct {
	fs     *pflag.FlagSet
	path   string
	values map[string]*string // of the overrides, by name
}

// NewSettings adds the flags to those of a command: --config, and all overrides or
// only those of some names.
func NewSettings(fs *pflag.FlagSet, only ...string) *Settings {
	s := &Settings{fs: fs, values: map[string]*string{}}
	fs.StringVar(&s.path, "config", config.DefaultPath, "the `FILE` with the configuration")
	for _, o := range Overrides() {
		if len(only) > 0 && !slices.Contains(only, o.Name) {
			continue
		}
		s.values[o.Name] = fs.String(o.Name, "", o.Usage)
	}
	return s
}

// Load reads the configuration that the command line selects.
func (s *Settings) Load() (*config.Config, error) {
	c, err := config.Load(s.path)
	if err != nil {
		return nil, err
	}

	for _, o := range Overrides() {
		if s.fs.Changed(o.Name) {
			o.set(c, *s.values[o.Name])
		}
	}

	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("configuration with the command line's flags: %w", err)
	}
	return c, nil
}

// Configured is a command that reads the configuration, with what it runs.
func Configured(cmd *cobra.Command, run func(ctx context.Context, cfg *config.Config, args []string, out io.Writer) error) *cobra.Command {
	s := NewSettings(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := s.Load()
		if err != nil {
			return err
		}
		return run(cmd.Context(), cfg, args, cmd.OutOrStdout())
	}
	return cmd
}

// Group is a command that only has others below it.
func Group(name, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, SuggestionsMinimumDistance: 2, Args: cobra.ArbitraryArgs, DisableFlagsInUseLine: true}
	cmd.AddCommand(commands...)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return Wrong(cmd, fmt.Errorf("%s needs a command: %s", cmd.CommandPath(), strings.Join(names(cmd), ", ")))
		}
		if args[0] == "help" {
			return cmd.Help()
		}

		hint := ""
		if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
			hint = ", did you mean " + strings.Join(like, " or ") + "?"
		}
		return Wrong(cmd, fmt.Errorf("unknown command %q of %s%s", args[0], cmd.CommandPath(), hint))
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

// Wrong is the error of a command line that cannot be understood.
func Wrong(cmd *cobra.Command, err error) error {
	return fmt.Errorf("%w\n%s --help describes the command line", err, cmd.CommandPath())
}

// Exactly accepts so many arguments, which are described in words.
func Exactly(count int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != count {
			return Wrong(cmd, fmt.Errorf("%s takes %s, got %q", cmd.CommandPath(), what, args))
		}
		return nil
	}
}

// UpTo accepts at most so many arguments.
func UpTo(count int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > count {
			return Wrong(cmd, fmt.Errorf("%s takes %s, got %q", cmd.CommandPath(), what, args))
		}
		return nil
	}
}

// Doubled gives the flags of commands that once accepted one dash, -root DIR, the
// two that they have now.
func Doubled(args []string) []string {
	once := []string{"serve", "plan", "run", "images", "network", "config"}
	flags := []string{"config", "repair", "subnet", "cluster", "mode", "help"}
	for _, o := range Overrides() {
		flags = append(flags, o.Name)
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

// AtLeast accepts at least so many arguments.
func AtLeast(count int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < count {
			return Wrong(cmd, fmt.Errorf("%s takes %s", cmd.CommandPath(), what))
		}
		return nil
	}
}
