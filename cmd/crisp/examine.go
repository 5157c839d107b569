package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"crisp/cri/config"
	"crisp/image"
	"crisp/network/cni"
	"crisp/runtime/cgroup"
	"crisp/runtime/seccomp"
)

// examine reports everything that a configuration refers to and this machine
// lacks. It changes nothing.
func examine(cfg *config.Config) error {
	errs := []error{keyed("cgroup_driver", cgroup.CheckDriver(cfg.CgroupDriver))}
	if cfg.SeccompProfile != "" {
		_, err := seccomp.Load(cfg.SeccompProfile)
		errs = append(errs, keyed("seccomp_profile", err))
	}

	for _, pattern := range cfg.PinnedImages {
		errs = append(errs, keyed("pinned_images", image.CheckPattern(pattern)))
	}
	for key, dirs := range map[string][]string{
		"root": {cfg.Root}, "state": {cfg.State}, "netns_dir": {cfg.NetNSDir},
		"cni_conf_dir": {cfg.CNIConfDir}, "cni_bin_dirs": cfg.CNIBinDirs,
		"registry_config_dirs": cfg.RegistryConfigDirs, "cdi_spec_dirs": cfg.CDISpecDirs,
		"hooks_dirs": cfg.HooksDirs, "image_import_dir": {cfg.ImportDir()},
	} {
		for _, dir := range dirs {
			errs = append(errs, keyed(key, aDirectory(dir)))
		}
	}

	return errors.Join(errs...)
}

// keyed adds the key that an error is about, unless it is nil.
func keyed(key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", key, err)
}

// aDirectory checks that a path is a directory or missing: it may be created
// later.
func aDirectory(path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !st.IsDir():
		return fmt.Errorf("%s is not a directory", path)
	}
	return nil
}

// checkConfig is the command config check: it reports what examine finds, and
// what a daemon would wait for or fail on.
func checkConfig(cfg *config.Config, out io.Writer) error {
	err := examine(cfg)
	if _, e := replaceable(cfg.Socket()); e != nil && !inUse(cfg.State) {
		err = errors.Join(err, keyed("listen", e))
	}

	_, e := cni.Load(cfg.CNIConfDir)
	noNetwork := errors.Is(e, cni.ErrNoConfig)
	if e != nil && !noNetwork {
		err = errors.Join(err, keyed("cni_conf_dir", e))
	}
	if err != nil {
		return err
	}

	fmt.Fprintf(out, "The configuration is valid; pods will be stored in %s and served on %s.\n", cfg.Root, cfg.Listen)
	if noNetwork && cfg.DefaultNetwork {
		fmt.Fprintf(out, "There is no network configuration in %s: until one is installed, pods are attached to crisp's own network (default_network).\n", cfg.CNIConfDir)
	} else if noNetwork {
		fmt.Fprintf(out, "There is no network configuration in %s yet: until a network add-on installs one, only pods in the node's network can run.\n", cfg.CNIConfDir)
	}
	return nil
}

// inUse reports whether a daemon has the lock of a directory.
func inUse(dir string) bool {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}
