package launch

import (
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/plan"
)

// TestPauseIsThePodsUser has a container examine the init of a PID namespace
// that the pod shares.
func TestPauseIsThePodsUser(t *testing.T) {
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		t.Run(name, func(t *testing.T) {
			for _, tt := range []struct {
				user specs.User
				want string
			}{
				{specs.User{}, "0 0 0 0\n0 0 0 0\n\n0000000000000000"},
				{specs.User{UID: 1234, GID: 2345, AdditionalGids: []uint32{7, 2345}}, "1234 1234 1234 1234\n2345 2345 2345 2345\n7 2345\n0000000000000000"},
			} {
				b := newLab(t)
				o := o
				o.PidNS, o.User = true, tt.user
				b.sandbox(o)

				s := b.spec("grep -E '^(Uid|Gid|Groups|CapPrm):' /proc/1/status | tr '\\t' ' '; tr '\\0' ' ' </proc/1/cmdline")
				setNamespace(s, specs.PIDNamespace, "ns/pid")
				var got []string
				for line := range strings.Lines(b.run(s)) {
					_, value, _ := strings.Cut(line, ": ")
					got = append(got, strings.TrimSpace(value))
				}

				if out := strings.Join(got, "\n"); !strings.HasPrefix(out, tt.want) {
					t.Errorf("user %d: the first process is %q, want %q", tt.user.UID, out, tt.want)
				}
			}
		})
	}
}

// TestFileOfAnImage mounts a single file of an image.
func TestFileOfAnImage(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	dir := t.TempDir()
	write(t, dir+"/f", "from image\n")

	for _, dest := range []string{"/file", "/new/dir/file", "/dev/shm/file"} {
		f, err := openMount(&plan.Input{Path: dir + "/f"})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()

		s := b.spec("cat " + dest)
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "image", Source: "image/0"})
		if got := b.runWith(s, Held{"image/0": f}); got != "from image" {
			t.Errorf("%s: %q", dest, got)
		}
	}
}

// TestManyDirectoriesInPath finds a program in the last of many directories.
func TestManyDirectoriesInPath(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	for _, count := range []int{131, 2000} {
		var dirs []string
		for i := range count {
			dirs = append(dirs, "/opt/"+strconv.Itoa(i)+"/bin")
		}
		s := b.spec("echo found")
		s.Process.Args[0] = "sh"
		s.Process.Env = []string{"PATH=" + strings.Join(append(dirs, "/bin"), ":")}
		b.want(s, "found")
	}
}
