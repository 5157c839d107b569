package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// holdsEnv names what a process that runs this program in a container holds. It says
// "held" when it does, waits for a file to appear, and says whether it still does.
const (
	holdsEnv = "CRISP_E2E_HOLDS"
	holdsDir = "/go" // a volume with the file
)

// holder makes something that a process can have, and returns what checks that it
// still has it.
type holder func() (check func() error, err error)

// hold runs this process as one that holds something, if it is to.
func hold() bool {
	name := os.Getenv(holdsEnv)
	if name == "" {
		return false
	}
	all := holdersOfFiles()
	for _, more := range []map[string]holder{holdersOfMemory(), holdersOfSockets(), holdersOfProcesses(), holdersOfRefused()} {
		for k, h := range more {
			all[k] = h
		}
	}
	runtime.LockOSThread()
	check, err := all[name]()
	if err != nil {
		fmt.Println("cannot hold:", err)
		return true
	}

	fmt.Println("held")
	for {
		if _, err := os.Stat(holdsDir + "/on"); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := check(); err != nil {
		fmt.Println("lost:", err)
	} else {
		fmt.Println("kept")
	}
	for {
		time.Sleep(time.Hour)
	}
}

// want is an error if a value is not what it was.
func want[T comparable](got, want T) error {
	if got != want {
		return fmt.Errorf("it is %v, want %v", got, want)
	}
	return nil
}

// readBack checks that a text can be read from somewhere.
func readBack(r io.Reader, text string) error {
	got := make([]byte, len(text))
	if _, err := io.ReadFull(r, got); err != nil {
		return err
	}
	return want(string(got), text)
}

// holdersOfFiles have files and what is made for them.
func holdersOfFiles() map[string]holder {
	return map[string]holder{
		"file and offset": func() (func() error, error) {
			f, err := os.Create("/tmp/file")
			if err == nil {
				_, err = f.WriteString("0123456789")
			}
			if err == nil {
				_, err = f.Seek(3, io.SeekStart)
			}
			return func() error { return readBack(f, "3456789") }, err
		},
		"deleted file": func() (func() error, error) {
			f, err := os.Create("/tmp/deleted")
			if err == nil {
				_, err = f.WriteString("deleted")
			}
			return func() error { return readBack(io.NewSectionReader(f, 0, 99), "deleted") }, errors.Join(err, os.Remove("/tmp/deleted"))
		},
		"mapped file":         func() (func() error, error) { return mapFile("/tmp/mapped", false) },
		"mapped deleted file": func() (func() error, error) { return mapFile("/tmp/mapped", true) },

		"memfd": func() (func() error, error) {
			fd, err := unix.MemfdCreate("held", unix.MFD_ALLOW_SEALING)
			f := os.NewFile(uintptr(fd), "memfd")
			if err == nil {
				_, err = f.WriteString("in memory")
			}
			return func() error { return readBack(io.NewSectionReader(f, 0, 99), "in memory") }, err
		},
		"file in a tmpfs": func() (func() error, error) {
			err := os.WriteFile("/dev/kept", []byte("in tmpfs"), 0o640)
			return func() error {
				text, err := os.ReadFile("/dev/kept")
				return errors.Join(err, want(string(text), "in tmpfs"))
			}, err
		},
		"lock": func() (func() error, error) {
			f, err := os.Create("/tmp/locked")
			if err == nil {
				err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
			}
			return func() error {
				runtime.KeepAlive(f)
				if out, err := exec.Command("/bin/grep", "-c", "POSIX", "/proc/locks").Output(); err != nil {
					return fmt.Errorf("no lock is listed: %s, %w", out, err)
				}
				return nil
			}, err
		},
		"working directory": func() (func() error, error) {
			err := errors.Join(os.MkdirAll("/tmp/here", 0o755), os.Chdir("/tmp/here"))
			return func() error {
				at, err := unix.Getwd()
				return errors.Join(err, want(at, "/tmp/here"))
			}, err
		},

		"inotify of a volume": func() (func() error, error) { return watch(holdsDir + "/watched") },

		"eventfd": func() (func() error, error) {
			fd, err := unix.Eventfd(7, 0)
			return func() error {
				b := make([]byte, 8)
				_, err := unix.Read(fd, b)
				return errors.Join(err, want(b[0], 7))
			}, err
		},
		"epoll": func() (func() error, error) {
			e, err := unix.EpollCreate1(0)
			fd, eerr := unix.Eventfd(0, 0)
			if err = errors.Join(err, eerr); err == nil {
				err = unix.EpollCtl(e, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: 4242})
			}
			return func() error {
				if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
					return err
				}
				events := make([]unix.EpollEvent, 1)
				n, err := unix.EpollWait(e, events, 5000)
				return errors.Join(err, want(n, 1), want(events[0].Fd, 4242))
			}, err
		},
		"timerfd": func() (func() error, error) {
			fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0)
			if err == nil {
				err = unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.Timespec{Nsec: 1e8}, Interval: unix.Timespec{Nsec: 1e8}}, nil)
			}
			return func() error {
				b := make([]byte, 8)
				for range 3 {
					if _, err := unix.Read(fd, b); err != nil {
						return err
					}
				}
				return nil
			}, err
		},
		"signalfd": func() (func() error, error) {
			set := unix.Sigset_t{Val: [16]uint64{1 << (unix.SIGUSR2 - 1)}}
			err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil)
			fd, ferr := unix.Signalfd(-1, &set, 0)
			return func() error {
				if err := unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGUSR2); err != nil {
					return err
				}
				b := make([]byte, 128)
				_, err := unix.Read(fd, b)
				return errors.Join(err, want(b[0], byte(unix.SIGUSR2)))
			}, errors.Join(err, ferr)
		},
	}
}

// watch watches a directory.
func watch(dir string) (func() error, error) {
	fd, err := unix.InotifyInit1(0)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, dir, unix.IN_CREATE)
	}
	return func() error {
		if err := os.WriteFile(dir+"/new", nil, 0o600); err != nil {
			return err
		}
		b := make([]byte, 4096)
		n, err := unix.Read(fd, b)
		return errors.Join(err, want(bytes.Contains(b[:max(n, 0)], []byte("new")), true))
	}, err
}

// mapFile maps a file, shared, which is removed if deleted.
func mapFile(path string, deleted bool) (func() error, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(8192); err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}

	copy(b[5000:], "mapped")
	if deleted {
		err = os.Remove(path)
	}
	return func() error {
		if err := want(string(b[5000:5006]), "mapped"); err != nil {
			return err
		}
		copy(b[100:], "again")
		return readBack(io.NewSectionReader(f, 100, 99), "again")
	}, err
}

// fromOutside has a connection from the node at a port, which is closed by a restore.
const (
	fromOutside = "TCP connection, closed"
	outsidePort = "7003"
)

// holdersOfSockets have pipes and sockets.
func holdersOfSockets() map[string]holder {
	return map[string]holder{
		"pipe": func() (func() error, error) {
			r, w, err := os.Pipe()
			if err == nil {
				_, err = w.WriteString("in the pipe")
			}
			return func() error { runtime.KeepAlive(w); return readBack(r, "in the pipe") }, err
		},
		"FIFO": func() (func() error, error) {
			err := unix.Mkfifo("/tmp/fifo", 0o600)
			f, ferr := os.OpenFile("/tmp/fifo", os.O_RDWR, 0)
			if err = errors.Join(err, ferr); err == nil {
				_, err = f.WriteString("in the FIFO")
			}
			return func() error { return readBack(f, "in the FIFO") }, err
		},

		"socket pair": func() (func() error, error) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err == nil {
				_, err = unix.Write(fds[0], []byte("in the socket"))
			}
			return func() error { return readBack(os.NewFile(uintptr(fds[1]), "socket"), "in the socket") }, err
		},

		"socket pair of datagrams":   func() (func() error, error) { return pairOf(unix.SOCK_DGRAM) },
		"socket pair of packets":     func() (func() error, error) { return pairOf(unix.SOCK_SEQPACKET) },
		"Unix connection":            func() (func() error, error) { return connected("unix", "/tmp/connected") },
		"Unix connection of packets": func() (func() error, error) { return connected("unixpacket", "@connected") },
		"Unix datagrams":             func() (func() error, error) { return datagrams("unixgram", "/tmp/datagrams") },
		"Unix socket in a volume":    func() (func() error, error) { return listens("unix", holdsDir+"/own-socket") },

		"Unix socket":                  func() (func() error, error) { return listens("unix", "/tmp/socket") },
		"abstract Unix socket":         func() (func() error, error) { return listens("unix", "@held") },
		"TCP v4 that listens":          func() (func() error, error) { return listens("tcp4", "127.0.0.1:7001") },
		"TCP v6 that listens":          func() (func() error, error) { return listens("tcp6", "[::]:7002") },
		"TCP connection v4 of its own": func() (func() error, error) { return connected("tcp4", "127.0.0.1:7007") },
		"TCP connection v6 of its own": func() (func() error, error) { return connected("tcp6", "[::1]:7008") },
		fromOutside: func() (func() error, error) {
			l, err := plainTCP().Listen(context.Background(), "tcp4", ":"+outsidePort)
			if err != nil {
				return nil, err
			}
			c, err := l.Accept()
			return func() error {
				if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
					return err
				}
				_, err := c.Read(make([]byte, 1))
				if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					return fmt.Errorf("the connection is still there: %w", err)
				}
				return nil
			}, err
		},

		"UDP v4": func() (func() error, error) { return datagrams("udp4", "127.0.0.1:7004") },
		"UDP v6": func() (func() error, error) { return datagrams("udp6", "[::]:7005") },
		"packet socket": func() (func() error, error) {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
			return func() error { _, err := unix.Getsockname(fd); return err }, err
		},
		"raw socket": func() (func() error, error) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
			return func() error { _, err := unix.Getsockname(fd); return err }, err
		},
		"netlink socket": func() (func() error, error) {
			fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
			if err == nil {
				err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
			}
			return func() error {
				_, err := unix.Getsockname(fd)
				return err
			}, err
		},
	}
}

// plainTCP listens without MPTCP, which is Go's default, and CRIU refuses.
func plainTCP() *net.ListenConfig {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	return &c
}

func listens(network, at string) (func() error, error) {
	l, err := plainTCP().Listen(context.Background(), network, at)
	return func() error {
		c, err := net.DialTimeout(network, strings.Replace(at, "[::]", "[::1]", 1), 5*time.Second)
		if err != nil {
			return err
		}
		peer, err := l.Accept()
		if err != nil {
			return err
		}
		if _, err := io.WriteString(c, "hello"); err != nil {
			return err
		}
		return readBack(peer, "hello")
	}, err
}

// connected connects to itself, with something on the way.
func connected(network, at string) (func() error, error) {
	l, err := plainTCP().Listen(context.Background(), network, at)
	if err != nil {
		return nil, err
	}
	c, err := net.Dial(network, at)
	if err != nil {
		return nil, err
	}

	peer, err := l.Accept()
	if err == nil {
		_, err = io.WriteString(c, "on the way")
	}
	return func() error {
		if _, err := io.WriteString(peer, "back"); err != nil {
			return err
		}
		return errors.Join(readBack(peer, "on the way"), readBack(c, "back"))
	}, err
}

func datagrams(network, at string) (func() error, error) {
	l, err := net.ListenPacket(network, at)
	return func() error {
		c, err := net.Dial(network, strings.Replace(at, "[::]", "[::1]", 1))
		if err != nil {
			return err
		}
		if _, err := io.WriteString(c, "hello"); err != nil {
			return err
		}
		b := make([]byte, 99)
		n, _, err := l.ReadFrom(b)
		return errors.Join(err, want(string(b[:n]), "hello"))
	}, err
}

// holdersOfProcesses have processes, threads, and what the kernel keeps of them.
func holdersOfProcesses() map[string]holder {
	start := func(session bool, args ...string) (*exec.Cmd, error) {
		c := exec.Command(args[0], args[1:]...)
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: session, Setpgid: !session}
		return c, c.Start()
	}

	return map[string]holder{
		"child in a session of its own": func() (func() error, error) {
			c, err := start(true, "/bin/sleep", "1000")
			return func() error {
				sid, err := unix.Getsid(c.Process.Pid)
				return errors.Join(err, want(sid, c.Process.Pid))
			}, err
		},
		"child in a group of its own": func() (func() error, error) {
			c, err := start(false, "/bin/sleep", "1000")
			return func() error {
				pgid, err := unix.Getpgid(c.Process.Pid)
				return errors.Join(err, want(pgid, c.Process.Pid), c.Process.Kill())
			}, err
		},

		"zombie": func() (func() error, error) {
			c, err := start(false, "/bin/sh", "-c", "exit 7")
			time.Sleep(200 * time.Millisecond)
			return func() error {
				var end *exec.ExitError
				if err := c.Wait(); !errors.As(err, &end) {
					return fmt.Errorf("it ended with %w", err)
				}
				return want(end.ExitCode(), 7)
			}, err
		},
		"pipe to a child": func() (func() error, error) {
			c := exec.Command("/bin/cat")
			in, err := c.StdinPipe()
			out, oerr := c.StdoutPipe()
			err = errors.Join(err, oerr, c.Start())
			return func() error {
				if _, err := io.WriteString(in, "through a child"); err != nil {
					return err
				}
				return readBack(out, "through a child")
			}, err
		},

		"threads": func() (func() error, error) {
			const several = 8
			ask, answer := make(chan struct{}), make(chan int)
			for range several {
				go func() {
					runtime.LockOSThread()
					id := unix.Gettid()
					answer <- id
					<-ask
					answer <- unix.Gettid() - id
				}()
			}
			ids := map[int]bool{}
			for range several {
				ids[<-answer] = true
			}
			return func() error {
				close(ask)
				for range several {
					if err := want(<-answer, 0); err != nil {
						return err
					}
				}
				return nil
			}, want(len(ids), several)
		},

		"pending signal": func() (func() error, error) {
			set := unix.Sigset_t{Val: [16]uint64{1 << (unix.SIGUSR1 - 1)}}
			err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil)
			err = errors.Join(err, unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGUSR1))
			return func() error {
				var pending uint64
				_, _, errno := unix.Syscall(unix.SYS_RT_SIGPENDING, uintptr(unsafe.Pointer(&pending)), 8, 0)
				return errors.Join(want(errno, 0), want(pending&(1<<(unix.SIGUSR1-1)) != 0, true))
			}, err
		},
		"pidfd of a child": func() (func() error, error) {
			c, err := start(false, "/bin/sleep", "1000")
			if err != nil {
				return nil, err
			}
			fd, err := unix.PidfdOpen(c.Process.Pid, 0)
			return func() error {
				if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
					return err
				}
				_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
				return err
			}, err
		},
		"interval timer": func() (func() error, error) {
			_, err := unix.Setitimer(unix.ITIMER_REAL, unix.MakeItimerval(0, time.Hour))
			return func() error {
				left, err := unix.Getitimer(unix.ITIMER_REAL)
				return errors.Join(err, want(left.Value.Sec > 3000 && left.Value.Sec < 3600, true))
			}, err
		},
		"POSIX timer": func() (func() error, error) {
			var id int32
			event := struct {
				value uint64
				signo int32
				kind  int32 // 1 is SIGEV_NONE
				rest  [48]byte
			}{kind: 1}
			_, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&id)))
			set := unix.ItimerSpec{Value: unix.Timespec{Sec: 3600}}
			_, _, serr := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0, uintptr(unsafe.Pointer(&set)), 0, 0, 0)
			return func() error {
				var left unix.ItimerSpec
				_, _, errno := unix.Syscall(unix.SYS_TIMER_GETTIME, uintptr(id), uintptr(unsafe.Pointer(&left)), 0)
				return errors.Join(want(errno, 0), want(left.Value.Sec > 3000, true))
			}, errors.Join(want(errno, 0), want(serr, 0))
		},
		"umask, limits, name": func() (func() error, error) {
			unix.Umask(0o123)
			err := errors.Join(unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1000, Max: 2000}), unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&[]byte("held name\x00")[0])), 0, 0, 0))
			return func() error {
				var l unix.Rlimit
				err := unix.Getrlimit(unix.RLIMIT_CORE, &l)
				name, nerr := os.ReadFile("/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/comm")
				return errors.Join(err, nerr, want(l, unix.Rlimit{Cur: 1000, Max: 2000}), want(unix.Umask(0), 0o123), want(string(name), "held name\n"))
			}, err
		},
	}
}

// holdersOfRefused have what cannot be saved, or not be restored.
func holdersOfRefused() map[string]holder {
	there := func() error { return nil }
	return map[string]holder{
		"inotify of its own files": func() (func() error, error) { return watch("/tmp/watched") },
		"MPTCP socket": func() (func() error, error) {
			l, err := net.Listen("tcp", "127.0.0.1:7006")
			return func() error { return l.Close() }, err
		},
		"io_uring": func() (func() error, error) {
			var params [120]byte
			_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params)), 0)
			return there, want(errno, 0)
		},
		"userfaultfd": func() (func() error, error) {
			const userModeOnly = 1
			_, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, userModeOnly, 0, 0)
			return there, want(errno, 0)
		},

		"System V shared memory": func() (func() error, error) {
			id, err := unix.SysvShmGet(77, 4096, unix.IPC_CREAT|0o600)
			if err != nil {
				return nil, err
			}
			b, err := unix.SysvShmAttach(id, 0, 0)
			copy(b, "held")
			return func() error { return want(string(b[:4]), "held") }, err
		},
		"Unix socket for others": func() (func() error, error) {
			l, err := net.Listen("unix", holdsDir+"/server")
			if err != nil {
				return nil, err
			}
			accepted := make(chan net.Conn)
			go func() {
				c, err := l.Accept()
				if err == nil {
					accepted <- c
				}
			}()
			return func() error { return readBack(<-accepted, "from a client") }, nil
		},
		"Unix socket of others": func() (func() error, error) {
			c, err := net.Dial("unix", holdsDir+"/server")
			return func() error { _, err := io.WriteString(c, "from a client"); return err }, err
		},
		"connection to a socket outside": func() (func() error, error) {
			c, err := net.Dial("unix", holdsDir+"/socket")
			return func() error { _, err := io.WriteString(c, "x"); return err }, err
		},
	}
}
