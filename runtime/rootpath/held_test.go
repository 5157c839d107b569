package rootpath

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// A container that may make files immutable cannot prevent their removal.
func TestRemoveAllOfImmutable(t *testing.T) {
	testkit.Root(t)
	root, dir, _ := tree(t)
	must(t, os.MkdirAll(dir+"/gone/append/sub", 0o700))
	must(t, os.MkdirAll(dir+"/gone/fixed/sub", 0o700))
	must(t, os.WriteFile(dir+"/gone/fixed/file", nil, 0o600))
	must(t, os.WriteFile(dir+"/gone/append/file", nil, 0o600))
	must(t, os.Mkdir(dir+"/gone/empty", 0o700))
	const fsAppend, fsImmutable = 0x20, 0x10
	for path, flag := range map[string]int{
		"/gone/append/sub": fsAppend, "/gone/append/file": fsAppend, "/gone/append": fsAppend,
		"/gone/fixed/sub": fsImmutable, "/gone/fixed/file": fsImmutable, "/gone/fixed": fsImmutable,
		"/gone/empty": fsImmutable, "/gone": fsImmutable,
	} {
		defer func() { // so that the test's cleanup can remove it
			if f, err := os.Open(dir + path); err == nil {
				_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0)
				f.Close()
			}
		}()

		f := openDir(t, dir+path)
		flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err == nil {
			err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags)|flag)
		}
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
			testkit.Skip(t, "immutable files", "neither this file system nor this user has them")
		}
		must(t, err)
	}

	must(t, RemoveAll(t.Context(), root, "gone"))
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
