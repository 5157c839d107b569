//go:build crash

package crash

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// fuseFile is the only file of a file system that a test serves.
type fuseFile interface {
	size() int64
	// open returns false if there is no answer, ever.
	open() bool
	read(buf []byte, at int64)
	write(data []byte, at int64)
	sync()
}

// fuse serves a folder with one file named "file", by the kernel's protocol.
type fuse struct {
	dev  *os.File
	dir  string
	file fuseFile
	done sync.WaitGroup
}

// Requests of the protocol, as far as there is more to do than say no.
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetattr     = 3
	fuseSetattr     = 4
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseStatfs      = 17
	fuseRelease     = 18
	fuseFsync       = 20
	fuseFlush       = 25
	fuseInit        = 26
	fuseOpendir     = 27
	fuseReleasedir  = 29
	fuseInterrupt   = 36
	fuseBatchForget = 42

	fuseHeader   = 40
	fuseMaxWrite = 128 << 10
)

// serveFuse mounts the file system at dir.
func serveFuse(t *testing.T, dir string, file fuseFile) *fuse {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		testkit.Skip(t, "FUSE", err.Error())
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("crash-test", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatalf("mount FUSE: %v", err)
	}
	// Before it is mounted there is nothing to poll.
	f := &fuse{dev: os.NewFile(uintptr(fd), "/dev/fuse"), dir: dir, file: file}
	f.done.Go(f.serve)
	return f
}

// end ends the server, upon which the kernel fails what waits for an answer.
func (f *fuse) end() {
	_ = f.dev.Close()
	f.done.Wait()
	_ = unix.Unmount(f.dir, unix.MNT_DETACH) // at its second call it is gone
}

func (f *fuse) serve() {
	conn, err := f.dev.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, fuseMaxWrite+4096)
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
		if err != nil || failure != nil || n < fuseHeader {
			return
		}
		answer, errno := f.answer(binary.LittleEndian.Uint32(buf[4:]), binary.LittleEndian.Uint64(buf[16:]), buf[fuseHeader:n])
		if errno < 0 {
			continue
		}
		out := binary.LittleEndian.AppendUint32(nil, uint32(16+len(answer)))
		out = binary.LittleEndian.AppendUint32(out, uint32(-int32(errno)))
		out = append(out, buf[8:16]...)
		_, _ = f.dev.Write(append(out, answer...)) // the request may have been given up
	}
}

// answer returns a negative number where there is none.
func (f *fuse) answer(op uint32, node uint64, in []byte) ([]byte, int) {
	le := binary.LittleEndian
	switch op {
	case fuseForget, fuseBatchForget, fuseInterrupt:
		return nil, -1
	case fuseInit:
		out := make([]byte, 64)
		le.PutUint32(out, 7)
		le.PutUint32(out[4:], 31)
		le.PutUint32(out[8:], le.Uint32(in[8:]))
		le.PutUint32(out[12:], 1<<5) // big writes
		le.PutUint32(out[20:], fuseMaxWrite)
		return out, 0
	case fuseLookup:
		if string(in) != "file\x00" {
			return nil, int(unix.ENOENT)
		}
		out := make([]byte, 40)
		le.PutUint64(out, 2)
		le.PutUint64(out[16:], 3600)
		le.PutUint64(out[24:], 3600)
		return append(out, f.attr(2)...), 0
	case fuseGetattr, fuseSetattr:
		out := make([]byte, 16)
		le.PutUint64(out, 3600)
		return append(out, f.attr(node)...), 0
	case fuseOpen:
		if !f.file.open() {
			return nil, -1
		}
		return make([]byte, 16), 0
	case fuseOpendir:
		return make([]byte, 16), 0
	case fuseRead:
		size, at := int64(le.Uint32(in[16:])), int64(le.Uint64(in[8:]))
		out := make([]byte, max(0, min(size, f.file.size()-at)))
		f.file.read(out, at)
		return out, 0
	case fuseWrite:
		data := in[40:]
		f.file.write(data, int64(le.Uint64(in[8:])))
		return le.AppendUint64(nil, uint64(len(data))), 0
	case fuseFsync:
		f.file.sync()
		return nil, 0
	case fuseFlush, fuseRelease, fuseReleasedir:
		return nil, 0
	case fuseStatfs:
		return make([]byte, 80), 0
	}
	return nil, int(unix.ENOSYS)
}

func (f *fuse) attr(node uint64) []byte {
	le := binary.LittleEndian
	out := make([]byte, 88)
	le.PutUint64(out, node)
	mode, size := uint32(unix.S_IFDIR|0o755), int64(4096)
	if node == 2 {
		mode, size = unix.S_IFREG|0o666, f.file.size()
	}
	le.PutUint64(out[8:], uint64(size))
	le.PutUint64(out[16:], uint64(size/512))
	le.PutUint32(out[60:], mode)
	le.PutUint32(out[64:], 1)
	le.PutUint32(out[80:], 4096)
	return out
}
