package criu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"

	"crisp/runtime/untrusted"
)

// RestoreLog is the file in [Restore.Work] that says what CRIU did.
const RestoreLog = "restore.log"

// Restore says what to make processes of, and for whom.
type Restore struct {
	// Images is a directory with images, Work one for the log.
	Images, Work string
	// Inside is the descriptor of Images that CRIU has, if it is in a user namespace, 0
	// otherwise. There it cannot open what this process has, and some of what it does for root
	// it has to do without. The log is in Images, too.
	Inside int
	// Connections keeps TCP connections. Otherwise they are closed for the processes.
	Connections bool
	// Root is where CRIU finds the container's root file system.
	Root string
	// Mounts are the container's mounts that are not its own, as they are called in
	// the images, and where CRIU finds them.
	Mounts map[string]string
	// Files are the descriptors of CRIU's that take the place of descriptors in the
	// images: "pipe:[1234]", "file[3a:5]", "net".
	Files map[string]int
	// AppArmor and SELinux are the profile and the label of all processes, whatever the
	// images say. Without either they have those of CRIU.
	AppArmor, SELinux string
}

// Stage is a point of a restore at which CRIU waits.
type Stage string

// The stages. Others may be reported, too.
const (
	// Made: all processes are there, and run CRIU's code.
	Made Stage = "post-restore"
	// Terminal: CRIU has made a terminal, whose node's end is passed.
	Terminal Stage = "orphan-pts-master"
	// Ready: they have their final credentials and filters, and are stopped before
	// the first instruction of their own.
	Ready Stage = "pre-resume"
)

// Event is a stage that a restore has reached.
type Event struct {
	Stage Stage
	// First is the container's first process, 0 before [Made].
	First int
	// File is the terminal at [Terminal], which the receiver owns, nil otherwise.
	File *os.File
}

// Session is the restore of one container by a CRIU that someone else starts.
type Session struct {
	program Program
	ours    *os.File
	theirs  *os.File
}

// NewSession makes the socket for one restore. The session is to be closed.
func (p Program) NewSession() (*Session, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	return &Session{p, ours, theirs}, nil
}

// Args are CRIU's arguments, where it has the session's socket as the descriptor fd,
// and Env is its environment.
func (s *Session) Args(fd int) []string { return []string{s.program.Path, "swrk", fmt.Sprint(fd)} }

// Env is CRIU's environment.
func (s *Session) Env() []string { return []string{"PATH=" + searchPath} }

// Socket is what CRIU gets. It is closed by [Session.Run], and by Close.
func (s *Session) Socket() *os.File { return s.theirs }

// Close ends the session: a CRIU that is not done kills what it has made.
func (s *Session) Close() {
	s.ours.Close()
	s.theirs.Close()
}

// Run asks the CRIU that was started for a restore, and calls at with each event. CRIU waits meanwhile, and gives up after an error. When ctx ends
// before it is done the error is [ErrTimeout]; [ErrRefused] has CRIU's reason if it
// cannot restore the images.
func (s *Session) Run(ctx context.Context, r Restore, at func(Event) error) error {
	s.theirs.Close() // so that its end is noticed
	dirs, err := openDirs(r.Images, r.Work)
	if err != nil {
		return fmt.Errorf("restore processes: %w", err)
	}
	defer func() { _, _ = dirs[0].Close(), dirs[1].Close() }()

	stop := context.AfterFunc(ctx, func() { _ = s.ours.SetDeadline(time.Now()) })
	defer stop()
	response, err := converse(s.ours, r.request(dirs), at)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("restore processes: %w: %w", ErrTimeout, context.Cause(ctx))
	case err == nil && response.GetSuccess():
		return nil
	}

	var refused *atError
	if errors.As(err, &refused) {
		return fmt.Errorf("restore processes: %w", refused.error)
	}
	reason := reasonIn(filepath.Join(r.Work, RestoreLog))
	if reason == "" {
		reason = untrusted.Of(response.GetCrErrmsg()).Message(maxReason)
	}
	if err != nil {
		return fmt.Errorf("restore processes: %w: %w: %s", ErrRefused, err, reason)
	}
	return fmt.Errorf("restore processes: %w: %s", ErrRefused, reason)
}

func openDirs(names ...string) ([2]*os.File, error) {
	var dirs [2]*os.File
	for i, name := range names {
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			_, _ = dirs[0].Close(), dirs[1].Close() // of those that are open
			return dirs, err
		}
		dirs[i] = f
	}
	return dirs, nil
}

func (r Restore) request(dirs [2]*os.File) *rpc.CriuReq {
	o := &rpc.CriuOpts{
		ImagesDirFd: to(int32(dirs[0].Fd())), WorkDirFd: to(int32(dirs[1].Fd())), LogFile: to(RestoreLog), LogLevel: to(int32(logLevel)),
		Root: to(r.Root), ManageCgroupsMode: to(rpc.CriuCgMode_IGNORE), RstSibling: to(true), NotifyScripts: to(true),
		TcpClose: to(!r.Connections), TcpEstablished: to(r.Connections), NetworkLock: to(rpc.CriuNetworkLockMethod_NFTABLES),
		FileLocks: to(true), LinkRemap: to(true), OrphanPtsMaster: to(true),
	}
	for key, path := range r.Mounts {
		o.External = append(o.External, fmt.Sprintf("mnt[%s]:%s", key, path))
	}
	for key, fd := range r.Files {
		o.InheritFd = append(o.InheritFd, &rpc.InheritFd{Key: to(key), Fd: to(int32(fd))})
	}
	if r.Inside > 0 {
		o.ImagesDirFd, o.ImagesDir, o.WorkDirFd = to(int32(-1)), to(fmt.Sprintf("/proc/self/fd/%d", r.Inside)), nil
		o.Unprivileged = to(true)
	}

	switch {
	case r.AppArmor != "":
		o.LsmProfile = to("apparmor:" + r.AppArmor)
	case r.SELinux != "":
		o.LsmProfile = to("selinux:" + r.SELinux)
	default:
		o.LsmProfile = to("none:")
	}
	return &rpc.CriuReq{Type: to(rpc.CriuReqType_RESTORE), Opts: o}
}

// atError is an error of the caller's at a stage.
type atError struct{ error }

// converse has CRIU serve a request, and answers what it asks meanwhile.
func converse(socket *os.File, request *rpc.CriuReq, at func(Event) error) (*rpc.CriuResp, error) {
	first := 0
	for {
		response, file, err := roundTrip(socket, request)
		if err != nil || response.GetType() != rpc.CriuReqType_NOTIFY {
			closeFile(file)
			return response, err
		}

		n := response.GetNotify()
		first = cmp.Or(int(n.GetPid()), first) // it is not in each message
		if Stage(n.GetScript()) != Terminal {
			closeFile(file)
			file = nil
		}
		if err := at(Event{Stage(n.GetScript()), first, file}); err != nil {
			return nil, &atError{err}
		}
		request = &rpc.CriuReq{Type: to(rpc.CriuReqType_NOTIFY), NotifySuccess: to(true)}
	}
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}
