package plan

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPrint(t *testing.T) {
	var b strings.Builder
	if err := everything().Print(&b); err != nil {
		t.Fatal(err)
	}

	for _, want := range []string{
		"start container web\n",
		"clone   CLONE_NEWUSER|CLONE_NEWNS, into <cgroup>, uid map 0:100000:65536, gid map 0:4294967295:1, 7:8:9\n",
		`in   0  stdin                                held "stdin"`,
		`clone mount "/srv/data" recursive, set MOUNT_ATTR_NODEV, clear MOUNT_ATTR_NOEXEC, set all MOUNT_ATTR_RDONLY, propagation MS_SLAVE, uid map 1:2:3, gid map 4:5:6, maps recursive`,
		`open "/dev/null" O_RDWR|O_NOFOLLOW`,
		"private procfs\n",
		`     0  open proc                            r3 = fsopen("proc", FSOPEN_CLOEXEC)` + "\n",
		`mkdirat(r3, "a b", 0755), EEXIST is fine, EROFS is fine`,
		`read(hook, {00}, 1)`,
		`clone(CLONE_PARENT), continue in the child, which others see`,
		`seccomp(SECCOMP_SET_MODE_FILTER, 0, filter[2])`,
		`sendmsg(keeper, pass(r15), MSG_NOSIGNAL)`,
		`ioctl(r0, TIOCSPTLCK, &{r2 {00 00 00 00 05}})`,
		`if r4: pread64(<null>, buf[64]), want "ok", avoid "no", again on EAGAIN`,
		`unless r5: execve("/bin/sh", ["sh" ""], [])`,
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("listing lacks %q", want)
		}
	}

	if t.Failed() {
		t.Log("\n" + b.String())
	}
	if n, want := strings.Count(b.String(), "\n"), 3+len(everything().Inputs)+len(everything().Steps); n != want {
		t.Errorf("%d lines, want %d", n, want)
	}
}

func TestFlagTable(t *testing.T) {
	for v, want := range map[int64]string{
		0:                          "0",
		unix.MS_BIND | unix.MS_REC: "MS_BIND|MS_REC",
		unix.MS_BIND | 1<<40:       "MS_BIND|0x10000000000",
		unix.MS_RDONLY | 1<<7:      "MS_RDONLY|128",
	} {
		if got := mountNames.text(v); got != want {
			t.Errorf("%#x: %s, want %s", v, got, want)
		}
	}
}
