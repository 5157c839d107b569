package selinux

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
)

// kernel knows labels of two users, the level s0 and these types.
func kernel(text string) (string, error) {
	l, ok := parse(text)
	known := map[string]bool{"container_t": true, "container_file_t": true, "spc_t": true, "logreader_t": true, "system_u": true, "staff_u": true}
	if !ok || !known[l.user] || !known[l.kind] || l.level != "s0" && !strings.HasPrefix(l.level, "s0:c") {
		return "", ErrLabel
	}
	return strings.ReplaceAll(text, "c2,c1", "c1,c2"), nil
}

func policy(t *testing.T) *Policy {
	t.Helper()
	p, err := load(files("process = \"system_u:system_r:container_t:s0\"\nfile=\"system_u:object_r:container_file_t:s0\"\n"), kernel)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func files(contexts string) fs.FS {
	return fstest.MapFS{
		configFile: {Data: []byte("# SELINUXTYPE=no\nSELINUX=enforcing\nSELINUXTYPE=default\n")},
		"etc/selinux/default/contexts/lxc_contexts": {Data: []byte(contexts)},
	}
}

func TestLabels(t *testing.T) {
	const (
		pod   = "s0:c1,c2"
		file  = "system_u:object_r:container_file_t:s0:c1,c2"
		super = "system_u:system_r:spc_t:s0"
	)

	type option = runtimeapi.SELinuxOption
	for name, c := range map[string]struct {
		o     *option
		reach Reach
		want  spec.Labels
		err   error
	}{
		"usual":           {want: spec.Labels{Process: "system_u:system_r:container_t:s0:c1,c2", Mount: file}},
		"level":           {o: &option{Level: "s0:c4,c5"}, want: spec.Labels{Process: "system_u:system_r:container_t:s0:c4,c5", Mount: "system_u:object_r:container_file_t:s0:c4,c5"}},
		"level otherwise": {o: &option{Level: "s0:c2,c1"}, want: spec.Labels{Process: "system_u:system_r:container_t:s0:c1,c2", Mount: file}},
		"all but the level": {o: &option{User: "staff_u", Role: "r", Type: "logreader_t"},
			want: spec.Labels{Process: "staff_u:r:logreader_t:s0:c1,c2", Mount: "staff_u:object_r:container_file_t:s0:c1,c2"}},
		"privileged":                {reach: Everything, want: spec.Labels{Process: super, Mount: file}},
		"privileged with a type":    {o: &option{Type: "logreader_t"}, reach: Everything, want: spec.Labels{Process: super, Mount: file}},
		"of the node":               {reach: Node, want: spec.Labels{Process: super, Mount: file}},
		"of the node with a type":   {o: &option{Type: "logreader_t"}, reach: Node, want: spec.Labels{Process: "system_u:system_r:logreader_t:s0:c1,c2", Mount: file}},
		"wrong level":               {o: &option{Level: "s0,c4,c5"}, err: ErrLabel},
		"wrong level of privileged": {o: &option{Level: "s0,c4,c5"}, reach: Everything, err: ErrLabel},
		"wrong type":                {o: &option{Type: "made_up_t"}, err: ErrLabel},
		"wrong user":                {o: &option{User: "nobody_u"}, err: ErrLabel},
		"role of files":             {o: &option{Role: "object_r"}, err: ErrLabel},
		"more than a type":          {o: &option{Type: "container_t:s0:c9"}, err: ErrLabel},
	} {
		got, err := policy(t).Labels(c.o, pod, c.reach)
		if !errors.Is(err, c.err) || got != c.want {
			t.Errorf("%s: got %+v, %v, want %+v, %v", name, got, err, c.want, c.err)
		}
	}

	if got := Level(policy(t).Shared()); got != "s0" {
		t.Errorf("what containers of any level share has level %q", got)
	}
}

func TestLevels(t *testing.T) {
	var l Levels
	var mu sync.Mutex
	seen := map[string]bool{}

	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				level := l.Take()
				mu.Lock()
				if seen[level] || !strings.HasPrefix(level, "s0:c") || strings.Count(level, ",") != 1 {
					t.Errorf("level %q is wrong or taken", level)
				}
				seen[level] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// Of these levels a daemon knows after a restart that pods have them.
func TestLevelsThatPodsHave(t *testing.T) {
	var l Levels
	for n := range pairs {
		if n != 17 {
			l.Hold(pair(n))
		}
	}

	if got, want := l.Take(), pair(17); got != want {
		t.Errorf("took %q, only %q is free", got, want)
	}
	l.Hold(levelOf(3, 4)) // by a second pod
	l.Drop(levelOf(3, 4))
	l.Drop(levelOf(1022, 1023))

	if got, want := l.Take(), levelOf(1022, 1023); got != want {
		t.Errorf("took %q, only %q is free", got, want)
	}
	if len(l.held) != pairs {
		t.Errorf("%d levels are different, want %d", len(l.held), pairs)
	}
}

func TestPolicyWithoutContainers(t *testing.T) {
	for name, root := range map[string]fs.FS{
		"nothing":       fstest.MapFS{},
		"half":          files(`process = "system_u:system_r:container_t:s0"`),
		"no label":      files("process = \"container_t\"\nfile = \"container_file_t\"\n"),
		"unknown types": files("process = \"system_u:system_r:lxc_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n"),
	} {
		if _, err := load(root, kernel); !errors.Is(err, ErrNoTypes) {
			t.Errorf("%s: got %v, want %v", name, err, ErrNoTypes)
		}
	}
}

// A kernel that could not be asked has not said that containers are unknown.
func TestKernelThatCannotBeAsked(t *testing.T) {
	root := files("process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n")
	for errno, wrong := range map[unix.Errno]bool{
		unix.EINVAL: true, unix.EFBIG: true, unix.ERANGE: true,
		unix.EMFILE: false, unix.ENFILE: false, unix.ENOMEM: false, unix.EINTR: false, unix.ENOENT: false,
	} {
		said := &os.PathError{Op: "write", Path: "/sys/fs/selinux/context", Err: errno}
		_, err := load(root, func(text string) (string, error) { return answer(text, "", said) })
		if !errors.Is(err, errno) || errors.Is(err, ErrLabel) != wrong || errors.Is(err, ErrNoTypes) != wrong {
			t.Errorf("%v: got %q, want a label unknown to the policy: %v", errno, err, wrong)
		}
	}

	for _, errno := range []unix.Errno{unix.EACCES, unix.EPERM} {
		if got, err := answer("u:r:t:s0", "", errno); got != "u:r:t:s0" || err != nil {
			t.Errorf("%v: got %q, %v, want the label as it is", errno, got, err)
		}
	}

	if got, err := answer("u:r:t:s0:c2,c1", "u:r:t:s0:c1,c2\x00", nil); got != "u:r:t:s0:c1,c2" || err != nil {
		t.Errorf("got %q, %v, want the kernel's word", got, err)
	}
}

func TestPolicyWithoutName(t *testing.T) {
	const contexts = "process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n"
	for _, config := range []string{"", "SELINUX=enforcing\n", "SELINUXTYPE=\n", "SELINUXTYPE= \n"} {
		root := fstest.MapFS{
			configFile: {Data: []byte(config)},
			"etc/selinux/targeted/contexts/lxc_contexts": {Data: []byte(contexts)},
		}
		if _, err := load(root, kernel); err != nil {
			t.Errorf("%q: %v", config, err)
		}
		if _, err := load(fstest.MapFS{configFile: {Data: []byte(config)}}, kernel); !errors.Is(err, ErrNoTypes) {
			t.Errorf("%q without the policy: got %v, want %v", config, err, ErrNoTypes)
		}
	}
}
