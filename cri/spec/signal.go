package spec

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// The C library reserves the kernel's first two real-time signals.
	sigRTMin = 34
	sigRTMax = 64
)

// ParseSignal parses a signal in the notations of STOPSIGNAL: a number, or a
// name with or without SIG in any case, including RTMIN+n and RTMAX-n.
func ParseSignal(s string) (syscall.Signal, error) {
	if isDigits(s) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > sigRTMax {
			return 0, invalid("signal number %s", s)
		}
		return syscall.Signal(n), nil
	}

	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	switch {
	case strings.HasPrefix(name, "RTMIN"):
		return realtime(s, sigRTMin, "+", strings.TrimPrefix(name, "RTMIN"))
	case strings.HasPrefix(name, "RTMAX"):
		return realtime(s, sigRTMax, "-", strings.TrimPrefix(name, "RTMAX"))
	case name == "CLD":
		name = "CHLD"
	case name == "POLL":
		name = "IO"
	case name == "IOT":
		name = "ABRT"
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return n, nil
	}

	return 0, invalid("signal %q", s)
}

// realtime adds the offset, such as "+3", to a real-time signal.
func realtime(name string, base int, sign, offset string) (syscall.Signal, error) {
	if offset == "" {
		return syscall.Signal(base), nil
	}
	digits, ok := strings.CutPrefix(offset, sign)
	n, err := strconv.Atoi(digits)
	if !ok || !isDigits(digits) || err != nil || n > sigRTMax-sigRTMin {
		return 0, invalid("signal %q", name)
	}
	if sign == "-" {
		n = -n
	}
	return syscall.Signal(base + n), nil
}

// FromCRI returns the signal of a CRI constant, 0 for the default.
func FromCRI(s runtimeapi.Signal) (syscall.Signal, error) {
	if s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return 0, nil
	}
	name, ok := runtimeapi.Signal_name[int32(s)]
	if !ok {
		return 0, invalid("stop signal %d", s)
	}
	name = strings.TrimPrefix(name, "SIGNAL_")
	name = strings.Replace(name, "RTMINPLUS", "RTMIN+", 1)
	name = strings.Replace(name, "RTMAXMINUS", "RTMAX-", 1)
	return ParseSignal(name)
}

// ToCRI returns the CRI constant of a signal, or that of the default if it has
// none.
func ToCRI(s syscall.Signal) runtimeapi.Signal {
	if n := int(s) - sigRTMin; n > 0 && n <= 15 {
		return criConstant(fmt.Sprintf("SIGRTMINPLUS%d", n))
	}
	if n := sigRTMax - int(s); n > 0 && n <= 14 {
		return criConstant(fmt.Sprintf("SIGRTMAXMINUS%d", n))
	}
	switch s {
	case sigRTMin:
		return criConstant("SIGRTMIN")
	case sigRTMax:
		return criConstant("SIGRTMAX")
	}
	return criConstant(unix.SignalName(s))
}

func criConstant(name string) runtimeapi.Signal {
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+name])
}

// StopSignal returns the signal that stops a container: the configured one, the
// image's, or SIGTERM. An invalid signal of the image is ignored: an image must
// not be able to prevent its container from being run or stopped.
func StopSignal(cfg *runtimeapi.ContainerConfig, image string) (syscall.Signal, error) {
	sig, err := FromCRI(cfg.GetStopSignal())
	if sig != 0 || err != nil {
		return sig, err
	}
	if sig, err = ParseSignal(image); err == nil {
		return sig, nil
	}
	return syscall.SIGTERM, nil
}

func (b *builder) stopSignal() (err error) {
	b.out.StopSignal, err = StopSignal(b.Config, b.Image.StopSignal)
	if _, bad := ParseSignal(b.Image.StopSignal); bad != nil && b.Image.StopSignal != "" {
		b.warn("stop signal of the image is ignored: " + bad.Error())
	}
	return err
}
