// Package fuse serves a file system with one file, whose behaviour a test
// defines: a disk that drops unflushed writes, or a file whose open hangs.
package fuse

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// File is the file of a file system that a test serves.
type File interface {
	Size() int64 // in bytes
	// Open returns false if there is never a reply.
	Open() bool
	ReadAt(buf []byte, at int64)
	WriteAt(data []byte, at int64)
	Sync()
}

// Silent is a file whose open hangs: after SIGKILL, a process that opens it is
// in uninterruptible sleep. The first open is reported to Asked.
type Silent struct{ Asked chan struct{} }

// NewSilent returns such a file.
func NewSilent() Silent { return Silent{make(chan struct{}, 1)} }

// Open notifies Asked and never replies.
func (s Silent) Open() bool {
	select {
	case s.Asked <- struct{}{}:
	default:
	}
	return false
}

// Size is the size for stat.
func (Silent) Size() int64 { return 1 << 20 }

// ReadAt is never called.
func (Silent) ReadAt([]byte, int64) {}

// WriteAt is never called.
func (Silent) WriteAt([]byte, int64) {}

// Sync is never called.
func (Silent) Sync() {}

// Server serves a directory with one file named "file", with the kernel's
// protocol.
type Server struct {
	dev  *os.File
	dir  string
	file File
	done sync.WaitGroup
}

// Requests of the protocol that are not simply refused.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opOpendir     = 27
	opReleasedir  = 29
	opInterrupt   = 36
	opBatchForget = 42

	header   = 40
	maxWrite = 128 << 10
)

// Serve mounts the file system at dir. The caller calls End.
func Serve(t *testing.T, dir string, file File) *Server {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		testkit.Skip(t, "FUSE", err.Error())
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("fuse-test", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatalf("mount FUSE: %v", err)
	}
	// The mount must exist before it can be polled.
	f := &Server{dev: os.NewFile(uintptr(fd), "/dev/fuse"), dir: dir, file: file}
	f.done.Go(f.serve)
	return f
}

// End stops the server, whereupon the kernel fails all pending requests.
func (f *Server) End() {
	_ = f.dev.Close()
	f.done.Wait()
	_ = unix.Unmount(f.dir, unix.MNT_DETACH) // already unmounted at the second call
}

func (f *Server) serve() {
	conn, err := f.dev.SyscallConn()
	if err != nil {
		return
	}

	buf := make([]byte, maxWrite+4096)
	for {
		var n int
		var failure error
		err := conn.Read(func(fd uintptr) bool {
			n, failure = unix.Read(int(fd), buf)
			return failure != unix.EAGAIN
		})

		if failure == unix.EINTR || failure == unix.ENOENT {
			continue
		}
		if err != nil || failure != nil || n < header {
			return
		}

		answer, errno := f.answer(binary.LittleEndian.Uint32(buf[4:]), binary.LittleEndian.Uint64(buf[16:]), buf[header:n])
		if errno < 0 {
			continue
		}

		out := binary.LittleEndian.AppendUint32(nil, uint32(16+len(answer)))
		out = binary.LittleEndian.AppendUint32(out, uint32(-int32(errno)))
		out = append(out, buf[8:16]...)
		_, _ = f.dev.Write(append(out, answer...)) // the request may have been cancelled
	}
}

// answer returns a negative number if there is no reply.
func (f *Server) answer(op uint32, node uint64, in []byte) ([]byte, int) {
	le := binary.LittleEndian
	switch op {
	case opForget, opBatchForget, opInterrupt:
		return nil, -1
	case opInit:
		out := make([]byte, 64)
		le.PutUint32(out, 7)
		le.PutUint32(out[4:], 31)
		le.PutUint32(out[8:], le.Uint32(in[8:]))
		le.PutUint32(out[12:], 1<<5) // big writes
		le.PutUint32(out[20:], maxWrite)
		return out, 0
	case opLookup:
		if string(in) != "file\x00" {
			return nil, int(unix.ENOENT)
		}
		out := make([]byte, 40)
		le.PutUint64(out, 2)
		le.PutUint64(out[16:], 3600)
		le.PutUint64(out[24:], 3600)
		return append(out, f.attr(2)...), 0
	case opGetattr, opSetattr:
		out := make([]byte, 16)
		le.PutUint64(out, 3600)
		return append(out, f.attr(node)...), 0
	case opOpen:
		if !f.file.Open() {
			return nil, -1
		}
		return make([]byte, 16), 0
	case opOpendir:
		return make([]byte, 16), 0
	case opRead:
		size, at := int64(le.Uint32(in[16:])), int64(le.Uint64(in[8:]))
		out := make([]byte, max(0, min(size, f.file.Size()-at)))
		f.file.ReadAt(out, at)
		return out, 0
	case opWrite:
		data := in[40:]
		f.file.WriteAt(data, int64(le.Uint64(in[8:])))
		return le.AppendUint64(nil, uint64(len(data))), 0
	case opFsync:
		f.file.Sync()
		return nil, 0
	case opFlush, opRelease, opReleasedir:
		return nil, 0
	case opStatfs:
		return make([]byte, 80), 0
	}

	return nil, int(unix.ENOSYS)
}

func (f *Server) attr(node uint64) []byte {
	le := binary.LittleEndian
	out := make([]byte, 88)
	le.PutUint64(out, node)
	mode, size := uint32(unix.S_IFDIR|0o755), int64(4096)
	if node == 2 {
		mode, size = unix.S_IFREG|0o666, f.file.Size()
	}
	le.PutUint64(out[8:], uint64(size))
	le.PutUint64(out[16:], uint64(size/512))
	le.PutUint32(out[60:], mode)
	le.PutUint32(out[64:], 1)
	le.PutUint32(out[80:], 4096)
	return out
}
