package thread

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

func TestApart(t *testing.T) {
	testkit.Root(t)
	want, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}

	for range 50 {
		err := Apart(unix.CLONE_NEWNS|unix.CLONE_FS, func() error {
			got, err := os.Readlink("/proc/thread-self/ns/mnt")
			if err == nil && got == want {
				return errors.New("namespace is the old one")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}

		if got, _ := os.Readlink("/proc/self/ns/mnt"); got != want {
			t.Fatal("the main thread has changed its namespace")
		}
	}
}
