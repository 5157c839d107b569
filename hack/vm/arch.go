package main

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// arch is a processor architecture that can be booted.
type arch struct {
	// name is Go's, which is Debian's too.
	name string
	// emulator is qemu's program, and machine its arguments for the hardware.
	emulator, machine string
	// kernel is what its kernel's command line has besides.
	kernel string
	// console is the kernel's terminal, the emulator's first serial port.
	console string
	// tests is the terminal that tests write to, and port the arguments that
	// connect it to the emulator's output.
	tests, port string
	// accelerator chooses how the CPU is virtualised.
	accelerator func() acceleration
	// selinux: a second boot with SELinux is set up.
	selinux bool
	// user runs the architecture's programs on another, and magic and mask
	// are how binfmt_misc recognises them.
	user, magic, mask string
}

// arches are the architectures that crisp is tested on. The board that qemu
// has for arm64 has one serial port.
func arches() []arch {
	return []arch{
		{
			name: "amd64", emulator: "qemu-system-x86_64", machine: "-M q35", kernel: "tsc=reliable no_timer_check", selinux: true,
			console: "ttyS0", tests: "ttyS1", port: "-serial stdio", accelerator: accelerator,
		},
		{
			name: "arm64", emulator: "qemu-system-aarch64", machine: "-M virt",
			console: "ttyAMA0", tests: "ttyS0", port: "-chardev stdio,id=tests -device pci-serial,chardev=tests", accelerator: emulatedARM,
			user:  "qemu-aarch64-static",
			magic: `\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00`,
			mask:  `\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff`,
		},
	}
}

// findArch returns the architecture with a name.
func findArch(name string) (arch, error) {
	var names []string
	for _, a := range arches() {
		if a.name == name {
			return a, nil
		}
		names = append(names, a.name)
	}
	return arch{}, fmt.Errorf("no architecture %q, there are %s", name, strings.Join(names, ", "))
}

// emulatedARM is how qemu runs arm64 on anything. Pointer authentication with
// the architecture's algorithm takes half of the time; the other algorithm is
// the emulator's own. A thread for each CPU is safe there: programs that change
// code say so by instructions, which the emulator obeys.
func emulatedARM() acceleration {
	return acceleration{"emulation", "-accel tcg,thread=multi,tb-size=512 -cpu max,pauth-impdef=on", 10}
}

// foreign reports whether this machine cannot run the architecture's programs.
func (a arch) foreign() bool { return a.name != runtime.GOARCH }

// programs are what this machine needs to boot it.
func (a arch) programs() []string {
	list := []string{a.emulator, "mmdebstrap", "mke2fs"}
	if a.foreign() && a.user != "" {
		list = append(list, a.user)
	}
	return list
}

// register has the kernel run an architecture's programs by an emulator, in the
// user namespace that it is called in, and then executes its arguments. The
// emulator is opened at once, and so needs no copy in a chroot, and takes over
// the credentials of set-user-ID programs.
const register = `set -eu
dir=/proc/sys/fs/binfmt_misc name=$1 magic=$2 mask=$3 emulator=$4
shift 4
if ! [ -e "$dir/$name" ]; then
	mount -t binfmt_misc binfmt_misc "$dir"
	printf '%s' ":$name:M::$magic:$mask:$emulator:FC" >"$dir/register"
fi
exec "$@"
`

// install returns a command that runs programs of the architecture in a chroot,
// not yet started. For those of another architecture it runs in a user
// namespace, with all IDs the same: since Linux 6.7 each has its own list of
// emulators, so that the rest of the machine is not affected. On older kernels
// the emulator must have been registered.
func (a arch) install(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	if !a.foreign() || a.user == "" {
		return exec.CommandContext(ctx, name, args...), nil
	}
	user, err := exec.LookPath(a.user)
	if err != nil {
		return nil, err
	}

	kind := strings.TrimSuffix(a.user, "-static")
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", register, "register", kind, a.magic, a.mask, user, name}, args...)...)
	same := []syscall.SysProcIDMap{{Size: 1<<32 - 2}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: same, GidMappings: same, GidMappingsEnableSetgroups: true,
	}
	return cmd, nil
}
