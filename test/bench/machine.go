package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine prints the date, the versions and the machine of the run.
func (b *bench) machine(ctx context.Context, w *bytes.Buffer, began time.Time) {
	var uts unix.Utsname
	var info unix.Sysinfo_t
	_, _ = unix.Uname(&uts), unix.Sysinfo(&info) // empty on an error
	model := "unknown CPU"
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(cpuinfo)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
		}
	}

	cgroups := "v1"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		cgroups = "v2"
	}

	var versions []string
	for _, t := range b.targets {
		versions = append(versions, t.version)
	}

	if b.opt.peers != "" && b.opt.endpoint == "" {
		out, _ := exec.CommandContext(ctx, filepath.Join(b.opt.peers, "runc"), "--version").Output()
		first, _, _ := strings.Cut(string(out), "\n")
		versions = append(versions, first)
	}

	// What follows a dash identifies a private build.
	release, _, _ := strings.Cut(unix.ByteSliceToString(uts.Release[:]), "-")
	loads := slices.Sorted(slices.Values(b.loads))
	fmt.Fprintf(w, "%s, %d interleaved rounds of %d pods, %.0f minutes.\n", began.UTC().Format("2 January 2006, 15:04 UTC"), b.opt.rounds, b.opt.samples, time.Since(began).Minutes())
	fmt.Fprintf(w, "%s; %s.\n", strings.Join(versions, ", "), runtime.Version())
	fmt.Fprintf(w, "%d × %s, %d MB, Linux %s, cgroup %s.\n", runtime.NumCPU(), model, uint64(info.Totalram)*uint64(info.Unit)>>20, release, cgroups)

	if b.dir != "" {
		fmt.Fprintf(w, "The runtimes' data is on %s.\n", fileSystem(b.dir))
	}
	fmt.Fprintf(w, "Load average during the run: %.1f to %.1f, median %.1f.\n", quantile(loads, 0), quantile(loads, 1), quantile(loads, 0.5))
}

// fileSystem returns the type of the file system of dir.
func fileSystem(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "an unknown file system"
	}

	switch fs.Type {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	}

	return fmt.Sprintf("a file system of type %#x", fs.Type)
}
