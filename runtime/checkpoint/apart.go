package checkpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"crisp/runtime/ordinary"
	"crisp/runtime/untrusted"
)

const (
	// What the process of [Refill.Apart] has as descriptors, besides its request as standard
	// input and its answer as standard output.
	archiveFD, rootFD = 3, 4
	// maxAnswer bounds its answer in bytes.
	maxAnswer = 16 << 10
)

// answer says what came of a request: Kind is one of the errors of [Refill.Apply], by its
// text, "" for others, and Text all of the error. Without a text there is none.
type answer struct{ Kind, Text string }

// kinds are the errors that an answer names.
func kinds() []error { return []error{ErrInvalid, ErrTooLarge, ErrOccupied} }

// Apart has [Refill.Apply] done by a process of its own, for what is in memory counts as that
// of the process that has put it there. The process is command, with the arguments that have it
// call [ServeRefill], and enter moves it where its memory is to count, given its PID.
func (r Refill) Apart(ctx context.Context, command []string, enter func(pid int) error, archive, root *os.File) error {
	if err := r.apart(ctx, command, enter, archive, root); err != nil {
		return fmt.Errorf("restore /dev/shm: %w", err)
	}
	return nil
}

func (r Refill) apart(ctx context.Context, command []string, enter func(pid int) error, archive, root *os.File) error {
	request, err := json.Marshal(r)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env, cmd.ExtraFiles = []string{}, []*os.File{archive, root}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := ordinary.Start(cmd); err != nil {
		return err
	}

	err = enter(cmd.Process.Pid)
	if err == nil {
		_, err = in.Write(request) // before it the process takes nothing
	}
	err = errors.Join(err, in.Close())
	said, rerr := io.ReadAll(io.LimitReader(out, maxAnswer))
	werr := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case werr != nil: // the kernel kills what has no memory left
		return fmt.Errorf("%w: the process that does so: %w", ErrTooLarge, werr)
	case rerr != nil:
		return rerr
	}
	return answered(said)
}

// answered is the error in an answer.
func answered(text []byte) error {
	var a answer
	if err := json.Unmarshal(text, &a); err != nil {
		return fmt.Errorf("the process that does so said %.100q: %w", text, err)
	}
	for _, kind := range kinds() {
		if a.Kind == kind.Error() {
			return fmt.Errorf("%w: %s", kind, untrusted.Of(a.Text).Message(maxAnswer))
		}
	}
	if a.Text != "" {
		return errors.New(untrusted.Of(a.Text).Message(maxAnswer))
	}
	return nil
}

// ServeRefill is the part of the process that [Refill.Apart] starts.
func ServeRefill(ctx context.Context, in io.Reader, out io.Writer) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	var a answer
	if err := serve(ctx, text); err != nil {
		a.Text = err.Error()
		for _, kind := range kinds() {
			if errors.Is(err, kind) {
				a.Kind = kind.Error()
			}
		}
	}

	a.Text = a.Text[:min(len(a.Text), maxAnswer/8)] // a byte may take six
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(a); err != nil {
		return err
	}
	_, err = b.WriteTo(out)
	return err
}

func serve(ctx context.Context, request []byte) error {
	var r Refill
	if err := json.Unmarshal(request, &r); err != nil {
		return err
	}
	archive, root := os.NewFile(archiveFD, "archive"), os.NewFile(rootFD, "/dev/shm")
	defer archive.Close()
	defer root.Close()

	// What the user namespace of a file system does not know can make no file in it.
	runtime.LockOSThread()
	if err := become(r); err != nil {
		return err
	}
	return r.Apply(ctx, archive, root)
}

// become makes this thread the root of the pod's user namespace, to the file system, and
// leaves it all capabilities.
func become(r Refill) error {
	uid, uok := mapped(r.UIDs, 0)
	gid, gok := mapped(r.GIDs, 0)
	if !uok || !gok {
		return fmt.Errorf("%w: the pod's user namespace has no root", ErrInvalid)
	}

	unix.Umask(0)
	const noSetuidFixup = 1 << 2
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}

	for _, set := range []struct {
		call uintptr
		id   uint32
	}{{unix.SYS_SETFSGID, gid}, {unix.SYS_SETFSUID, uid}} {
		// They return the former ID, whatever happens.
		_, _, _ = unix.Syscall(set.call, uintptr(set.id), 0, 0)
		if now, _, _ := unix.Syscall(set.call, ^uintptr(0), 0, 0); uint32(now) != set.id {
			return fmt.Errorf("become user %d and group %d", uid, gid)
		}
	}
	return nil
}
