package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// packages are installed in addition to Debian's essential ones. The
// kernel for clouds has the drivers for its disks built in and so boots
// without an initramfs; the tool to build one is a dependency.
const packages = "linux-image-cloud-%s tiny-initramfs systemd-sysv dbus udev kmod apparmor " +
	"iptables nftables iproute2 procps mount util-linux e2fsprogs xfsprogs btrfs-progs passwd login sudo busybox ca-certificates less"

// selinuxPackages are what a release that boots with SELinux has besides.
const selinuxPackages = " selinux-policy-default policycoreutils"

// release is a Debian that can be booted.
type release struct {
	name string
	// selinux: the policy is installed and all files are labelled.
	selinux bool
	// cgroup1 makes systemd use control groups of version 1, if it still can.
	cgroup1 string
	// bigPages: its kernel has pages of 16 KiB.
	bigPages bool
	// expires: its lists of packages are valid for a week, longer than which a
	// mirror's may be old. Their signatures are checked all the same.
	expires bool
}

// releases are what crisp is tested on, by their kernels.
func releases() []release {
	return []release{
		{name: "trixie", selinux: true},                                   // Linux 6.12, systemd 257
		{name: "bookworm", cgroup1: "systemd.unified_cgroup_hierarchy=0"}, // Linux 6.1, systemd 252
		{name: "sid", expires: true},                                      // the newest of both when the disk was made
	}
}

// findRelease returns the release with a name.
func findRelease(name string) (release, error) {
	var names []string
	for _, r := range releases() {
		if r.name == name {
			return r, nil
		}
		names = append(names, r.name)
	}
	return release{}, fmt.Errorf("no release %q, there are %s", name, strings.Join(names, ", "))
}

// bigPages are the packages with a kernel whose pages have 16 KiB instead of 4:
// it is arm64's only, for no cloud, and all its drivers are modules.
func bigPages(list string) string {
	return strings.NewReplacer("linux-image-cloud-arm64", "linux-image-arm64-16k", " busybox ", " busybox-static ").Replace(list)
}

// packages are what is installed on the release's disk.
func (r release) packages(a arch) string {
	list := fmt.Sprintf(packages, a.name)
	if r.bigPages {
		list = bigPages(list)
	}
	if r.selinux {
		return list + selinuxPackages
	}
	return list
}

// disk begins the names of the release's disks.
func (r release) disk(a arch) string {
	switch {
	case r.bigPages:
		return a.name + "-16k-" + r.name + "-"
	case a.foreign():
		return a.name + "-" + r.name + "-"
	}
	return r.name + "-"
}

// policyFile, below the checkout, is the SELinux module of the Debian package.
// It is installed on the disk, since that takes a minute.
const policyFile = "hack/package/crisp.cil"

// guest are the files that turn Debian into a test machine.
//
//go:embed guest
var guest embed.FS

// baseDisk is an installed Debian, with an initramfs if its kernel needs one.
type baseDisk struct{ image, kernel, initramfs string }

// makeBase returns the disk with Debian, rebuilt if its inputs have changed.
func makeBase(ctx context.Context, o options, r release) (baseDisk, error) {
	policy, err := os.ReadFile(filepath.Join(filepath.Dir(o.cache), policyFile))
	if err != nil {
		return baseDisk{}, err
	}

	key, err := baseKey(o.arch, r, policy)
	if err != nil {
		return baseDisk{}, err
	}

	parent := filepath.Join(o.cache, "vm")
	dir := filepath.Join(parent, r.disk(o.arch)+key)
	base := baseDisk{image: filepath.Join(dir, "root.img"), kernel: filepath.Join(dir, "vmlinuz")}
	if r.bigPages {
		base.initramfs = filepath.Join(dir, "initramfs")
	}
	if _, err := os.Stat(dir); err == nil {
		return base, nil
	}

	if os.Geteuid() != 0 {
		return base, errors.New("the files belong to root: run as root")
	}
	fmt.Printf("vm: installing Debian %s (%s) on a new disk; this takes some minutes, once\n", r.name, o.arch.name)

	old, err := filepath.Glob(filepath.Join(parent, r.disk(o.arch)+"*"))
	if err != nil {
		return base, err
	}

	for _, d := range old {
		if err := os.RemoveAll(d); err != nil {
			return base, err
		}
	}

	if err := os.MkdirAll(parent, 0o755); err != nil {
		return base, err
	}
	fresh, err := os.MkdirTemp(parent, "new-")
	if err != nil {
		return base, err
	}
	defer os.RemoveAll(fresh)

	if err := install(ctx, fresh, o, r, policy); err != nil {
		return base, err
	}
	return base, os.Rename(fresh, dir)
}

// install creates root.img and vmlinuz in dir.
func install(ctx context.Context, dir string, o options, r release, policy []byte) error {
	files, tree := filepath.Join(dir, "guest"), filepath.Join(dir, "tree")
	if err := writeGuest(files, o.arch, policy); err != nil {
		return err
	}

	validity := "true"
	if r.expires {
		validity = "false"
	}
	bootstrap, err := o.arch.install(ctx, "mmdebstrap", "--architectures="+o.arch.name, "--skip=check/qemu",
		"--mode=root", "--variant=minbase", "--format=directory",
		"--include="+strings.ReplaceAll(r.packages(o.arch), " ", ","),
		`--aptopt=Acquire::Retries "3"`,
		fmt.Sprintf("--aptopt=Acquire::Check-Valid-Until %q", validity),
		"--skip=cleanup/reproducible", // it would recreate files that are already labelled
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--customize-hook="+filepath.Join(files, "setup"), r.name, tree, o.mirror)
	if err != nil {
		return err
	}
	if err := output(bootstrap); err != nil {
		return err
	}

	kernels, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil {
		return err
	}

	if len(kernels) != 1 {
		return fmt.Errorf("there are %d kernels instead of one", len(kernels))
	}
	if err := os.Rename(kernels[0], filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}

	if r.bigPages {
		initramfs, err := makeInitramfs(tree)
		if err != nil {
			return fmt.Errorf("make an initramfs: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, "initramfs"), initramfs, 0o644); err != nil {
			return err
		}
	}

	if err := makeExt4(ctx, tree, filepath.Join(dir, "root.img"), "4G"); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(tree), os.RemoveAll(files))
}

// writeGuest creates a directory with the files of the machine, and its policy.
func writeGuest(dir string, a arch, policy []byte) error {
	sub, err := fs.Sub(guest, "guest")
	if err != nil {
		return err
	}
	if err := os.CopyFS(dir, sub); err != nil {
		return err
	}

	unit := filepath.Join(dir, "crisp-tests.service")
	text, err := os.ReadFile(unit)
	if err != nil {
		return err
	}
	text = bytes.ReplaceAll(text, []byte("/dev/ttyS1\n"), []byte("/dev/"+a.tests+"\n"))

	return errors.Join(os.WriteFile(unit, text, 0o644),
		os.WriteFile(filepath.Join(dir, filepath.Base(policyFile)), policy, 0o644),
		os.Chmod(filepath.Join(dir, "setup"), 0o755))
}

// makeExt4 creates a file system with the files of a directory, without
// mounting it.
func makeExt4(ctx context.Context, dir, image, size string) error {
	return command(ctx, "", "mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1", "-d", dir, image, size)
}

// baseKey identifies the content of the disk.
func baseKey(a arch, r release, policy []byte) (string, error) {
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %s\n%s", r.name, r.packages(a), policy)
	err := fs.WalkDir(guest, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := guest.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n%s", path, len(content), content)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil))[:16], err
}

// need reports missing programs.
func need(programs ...string) error {
	var missing []string
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s is missing: apt-get install --no-install-recommends qemu-system-x86 qemu-system-arm qemu-user-static mmdebstrap e2fsprogs", strings.Join(missing, ", "))
	}
	return nil
}

// command runs a program; its error includes the end of the output.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	return output(cmd)
}

// output runs a command; its error includes the end of the output.
func output(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		const most = 2000
		return fmt.Errorf("%s: %w: %s", cmd.Args[0], err, strings.TrimSpace(string(out[max(0, len(out)-most):])))
	}
	return nil
}
