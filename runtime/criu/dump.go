package criu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"

	"crisp/runtime/untrusted"
)

const (
	// LogFile is the file in [Dump.Images] that says what CRIU did.
	LogFile = "dump.log"
	// logLevel is that of debug messages, which whoever examines a failure needs.
	logLevel = 4
	// maxLog is how much of a log's end is searched for errors, and maxReason how long
	// the text about them may be.
	maxLog, maxReason = 4 << 20, 1000
)

// Dump says what to save, and where.
type Dump struct {
	// Pid is the first process; its descendants are saved too. They go on
	// afterwards.
	Pid int
	// Images is an empty directory that only root can enter.
	Images string
	// Freezer is the directory of the processes' cgroup that freezes them. If they
	// are frozen they still are afterwards.
	Freezer string
	// Externals are what is not the container's own, as CRIU's option --external
	// has it: see [Externals].
	Externals []string
	// Sink, unless nil, gets the memory of the first processes, as many as Processes says,
	// instead of Images. They must be frozen, and what Sink has is complete when Dump returns.
	Sink      PageSink
	Processes int
	// Saved is called when all images are written, and CRIU has not yet taken back what it
	// has changed: see [Links]. It may be nil.
	Saved func() error
}

// stageSaved is the point of a dump at which [Dump.Saved] is called.
const stageSaved Stage = "post-dump"

// Dump saves processes. The error is [ErrRefused] with CRIU's reason if it
// cannot, and [ErrTimeout] when ctx ends before. Then it is killed: processes
// that it was just examining may be damaged, as nothing else can be done about a
// container that holds it up.
func (p Program) Dump(ctx context.Context, d Dump) (err error) {
	images, err := os.OpenFile(d.Images, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("dump process %d: %w", d.Pid, err)
	}
	defer images.Close()
	if d.Sink != nil {
		pages, err := newPageMover(d.Images, d.Sink, d.Processes)
		if err != nil {
			return fmt.Errorf("dump process %d: %w", d.Pid, err)
		}
		return errors.Join(p.dump(ctx, d, images), pages.finish())
	}
	return p.dump(ctx, d, images)
}

func (p Program) dump(ctx context.Context, d Dump, images *os.File) error {
	var serr error
	response, err := p.ask(ctx, func(stage Stage) {
		if stage == stageSaved && d.Saved != nil {
			serr = d.Saved()
		}
	}, &rpc.CriuReq{Type: to(rpc.CriuReqType_DUMP), Opts: &rpc.CriuOpts{
		Pid: to(int32(d.Pid)), External: d.Externals,
		ImagesDirFd: to(int32(images.Fd())), LogFile: to(LogFile), LogLevel: to(int32(logLevel)),
		LeaveRunning: to(true), FreezeCgroup: to(d.Freezer), ManageCgroupsMode: to(rpc.CriuCgMode_IGNORE),
		Root:           to("/"), // that of containers is mounted nowhere else
		TcpEstablished: to(true), NetworkLock: to(rpc.CriuNetworkLockMethod_NFTABLES),
		FileLocks: to(true), LinkRemap: to(true), OrphanPtsMaster: to(true),
		NotifyScripts: to(true), GhostLimit: to(uint32(math.MaxUint32)),
	}})
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("dump process %d: %w: %w", d.Pid, ErrTimeout, context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("dump process %d: %w", d.Pid, err)
	case serr != nil:
		return fmt.Errorf("dump process %d: %w", d.Pid, serr)
	case response.GetSuccess():
		return nil
	}

	reason := reasonIn(filepath.Join(d.Images, LogFile))
	if reason == "" {
		reason = untrusted.Of(response.GetCrErrmsg()).Message(maxReason)
	}
	return fmt.Errorf("dump process %d: %w: %s", d.Pid, ErrRefused, reason)
}

// Table is the packet filter table, of family inet, that CRIU has in the network
// namespace of a process while it dumps it.
func Table(pid int) string { return fmt.Sprintf("CRIU-%d", pid) }

func to[T any](v T) *T { return &v }

// reasonIn returns the errors of a log, but those that say only that there was one. That it
// may not raise its limits does not matter.
func reasonIn(log string) string {
	f, err := os.OpenFile(log, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	text, err := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-maxLog), maxLog))
	if err != nil {
		return ""
	}

	var found []string
	for line := range bytes.Lines(text) {
		// (00.088314) Error (criu/namespaces.c:1117): Can't dump …
		_, rest, ok := strings.Cut(string(line), "Error (")
		if !ok {
			continue
		}
		_, what, ok := strings.Cut(rest, "): ")
		if what = strings.TrimSuffix(strings.TrimSpace(what), " Consider using --ext-unix-sk option."); ok && !saysNothing(what) {
			found = append(found, what)
		}
	}

	const most = 3
	found = found[max(0, len(found)-most):]
	return untrusted.Of(strings.Join(found, "; ")).Message(maxReason)
}

// saysNothing reports whether an error of CRIU's follows from others, or does not matter.
func saysNothing(what string) bool {
	return what == "Dumping FAILED." || what == "Restoring FAILED." || strings.HasPrefix(what, "rlimit: ") || strings.HasPrefix(what, "cg: cgroupd: recv req error")
}
