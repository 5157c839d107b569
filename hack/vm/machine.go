package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"crisp/test/testkit/tally"
)

// acceleration is how the CPU is virtualised.
type acceleration struct {
	name, args string
	scale      float64 // how much slower than a real one
}

// accelerator is KVM if the CPU supports it. A /dev/kvm alone does not prove
// that: some hypervisors offer it only to enlightened guests.
//
// The emulated CPUs of a machine share one thread. With a thread each, one may
// execute code that another is patching in the kernel, which crashes the kernel
// (an unexpected int3), and two machines on two CPUs are slower. They lack
// cmpxchg16b, which emulators get wrong with several CPUs, and what is slow: the
// fifth level of page tables, and string instructions for copies, which are
// emulated byte by byte unless the CPU model says that they are slow.
func accelerator() acceleration {
	info, err := os.ReadFile("/proc/cpuinfo")
	flags := " " + strings.ReplaceAll(string(info), "\n", " ") + " "
	if err == nil && (strings.Contains(flags, " vmx ") || strings.Contains(flags, " svm ")) {
		if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
			f.Close()
			return acceleration{"KVM", "-accel kvm -cpu host", 1}
		}
	}
	return acceleration{"emulation", "-accel tcg,thread=single,tb-size=512 -cpu max,-cx16,-la57,-erms,-fsrm", 10}
}

// machine is a virtual machine.
type machine struct {
	release     release
	base        baseDisk
	tests       string
	accelerator acceleration
	options     options
}

const kernelArgs = "root=/dev/nvme0n1 rw panic=-1 mitigations=off loglevel=4 " +
	"systemd.show_status=false systemd.service_watchdogs=false rcupdate.rcu_expedited=1"

// The kernel's command line for either kind of machine. SELinux denials are in
// the journal, which requires auditing.
const (
	apparmorArgs = "audit=0"
	selinuxArgs  = "security=selinux enforcing=1 audit=1"
)

// disk is one of the machine's additional disks.
type disk struct{ serial, options string }

// qemu returns the machine's command without the arguments that differ between
// uses. The kernel has the driver of the first disk built in and names disks in
// the order of detection, which varies: so that disk is of another type, and
// the others are identified by their serial numbers.
func (m machine) qemu(kernel string, disks ...disk) []string {
	arch := m.options.arch
	args := strings.Fields(arch.machine + " -smp 2 -m 4G -nodefaults -no-user-config -display none -no-reboot " + m.accelerator.args)
	if m.options.cgroup1 {
		kernel += " " + m.release.cgroup1
	}
	args = append(args, "-kernel", m.base.kernel, "-append", strings.Join([]string{kernelArgs, "console=" + arch.console, arch.kernel, kernel}, " "),
		"-device", "virtio-rng-pci", "-drive", "if=none,id=debian,format=raw,"+forget(m.base.image), "-device", "nvme,serial=debian,drive=debian")
	if m.base.initramfs != "" {
		args = append(args, "-initrd", m.base.initramfs)
	}
	for _, d := range disks {
		args = append(args, "-drive", fmt.Sprintf("if=none,id=%s,format=raw,%s", d.serial, d.options),
			"-device", fmt.Sprintf("virtio-blk-pci,serial=%s,drive=%s", d.serial, d.serial))
	}
	return args
}

// forget makes a disk's changes temporary.
func forget(image string) string { return "snapshot=on,cache=unsafe,file=" + image }

// shell boots to a login shell.
func (m machine) shell(ctx context.Context) error {
	fmt.Printf("vm: booting with %s; log in as root, without a password; the checkout is in /crisp; ctrl-a x stops the machine\n", m.accelerator.name)
	kernel := apparmorArgs
	if m.options.selinux {
		kernel = selinuxArgs
	}
	args := append(m.qemu("systemd.wants=serial-getty@"+m.options.arch.console+".service "+kernel, disk{"checkout", forget(m.tests)}), "-serial", "mon:stdio")
	cmd := exec.CommandContext(ctx, m.options.arch.emulator, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// reportSpace is the size of the disk for reports.
const reportSpace = 256 << 20

// boots is how often an emulated machine is booted if its kernel crashes before
// the tests start: emulation has bugs of its own.
const boots = 3

// test boots, has the tests write to out, extracts their reports to a directory
// and returns their counts.
func (m machine) test(ctx context.Context, reports, kernel string, out io.Writer) (t tally.Tally, err error) {
	for boot := 1; ; boot++ {
		begun, err := m.boot(ctx, boot, reports, kernel, out)
		if err != nil {
			return t, err
		}
		if begun || boot == boots || m.accelerator.scale == 1 {
			break
		}
		fmt.Fprintln(out, "vm: the machine ended before the tests began; booting again")
	}

	if t, err = tally.Read(filepath.Join(reports, "tally.json")); err != nil {
		err = fmt.Errorf("the machine reported no counts; its console log is in %s: %w", reports, err)
	}
	return t, err
}

// boot runs the machine until it exits. Begun means that the tests have written
// something.
func (m machine) boot(ctx context.Context, boot int, reports, kernel string, out io.Writer) (begun bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.options.limit)
	defer cancel()
	archive := filepath.Join(reports, "reports.img")
	if err := errors.Join(os.MkdirAll(reports, 0o755), os.WriteFile(archive, nil, 0o644), os.Truncate(archive, reportSpace)); err != nil {
		return false, err
	}

	console := filepath.Join(reports, consoleName(boot))
	args := append(m.qemu("systemd.wants=crisp-tests.service "+kernel,
		disk{"checkout", forget(m.tests)}, disk{"reports", "cache=unsafe,file=" + archive}),
		"-serial", "file:"+console)
	args = append(args, strings.Fields(m.options.arch.port)...)

	fmt.Fprintf(out, "vm: booting with %s; the console is in %s\n", m.accelerator.name, console)
	began := time.Now()
	cmd := exec.CommandContext(ctx, m.options.arch.emulator, args...)
	tests := &noting{to: out}
	cmd.Stdout, cmd.Stderr = tests, os.Stderr

	// No signals from the terminal, but it must not outlive this program.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return tests.written, fmt.Errorf("run the machine: %w", errors.Join(ctx.Err(), err))
	}

	fmt.Fprintf(out, "vm: the machine ran for %v\n", time.Since(began).Round(time.Second))
	return tests.written, errors.Join(unpack(archive, reports), os.Remove(archive))
}

// consoleName distinguishes the boots: a crash leaves no other trace.
func consoleName(boot int) string {
	if boot == 1 {
		return "console.log"
	}
	return fmt.Sprintf("console-%d.log", boot)
}

// noting is a writer that forwards its input and records that there was some.
type noting struct {
	to      io.Writer
	written bool
}

func (n *noting) Write(p []byte) (int, error) {
	n.written = true
	return n.to.Write(p)
}

// unpack extracts the files of an archive that the machine wrote.
func unpack(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()

	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()

	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the reports: %w", err)
		}

		if h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return fmt.Errorf("read report %s: %w", h.Name, err)
		}

		if err := errors.Join(root.MkdirAll(filepath.Dir(h.Name), 0o755), root.WriteFile(h.Name, data, 0o644)); err != nil {
			return err
		}
	}
}
