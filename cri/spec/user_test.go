package spec

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageRoot is the root of an image with a few users.
func imageRoot(t *testing.T) *os.File {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}

	for name, content := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n4294967296:x:0:0::/:/\n",
		"group":  "root:x:0:root\nstaff:x:50000:app\nvideo:x:44:app,nobody\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestResolveUser(t *testing.T) {
	root := imageRoot(t)
	type sc = runtimeapi.LinuxContainerSecurityContext
	id := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	const strict = runtimeapi.SupplementalGroupsPolicy_Strict

	for _, tt := range []struct {
		name  string
		sc    *sc
		image string
		want  ResolvedUser
		err   string
	}{
		{name: "nothing", want: ResolvedUser{Groups: []uint32{0}, Name: "root", Home: "/root"}},
		{name: "image name", image: "app", want: ResolvedUser{UID: 1000, GID: 1001, Groups: []uint32{1001, 50000, 44}, Name: "app", Home: "/home/app"}},
		{name: "image number", image: "1000", want: ResolvedUser{UID: 1000, GID: 1001, Groups: []uint32{1001, 50000, 44}, Name: "app", Home: "/home/app"}},
		{name: "image with group", image: "app:video", want: ResolvedUser{UID: 1000, GID: 44, Groups: []uint32{44, 50000}, Name: "app", Home: "/home/app"}},
		{name: "image with group only", image: ":7", want: ResolvedUser{GID: 7, Groups: []uint32{7, 0}, Name: "root", Home: "/root"}},
		{name: "image unknown number", image: "4242", want: ResolvedUser{UID: 4242, Groups: []uint32{0}}},
		{name: "image unknown name", image: "ghost", err: "ghost"},
		{name: "image unknown group", image: "app:ghost", err: "ghost"},
		{name: "image number past the end", image: "4294967296", err: "4294967296"},
		{name: "image junk", image: "a:b:c", err: "user of the image"},
		{name: "uid", sc: &sc{RunAsUser: id(1000)}, image: "nobody:video", want: ResolvedUser{UID: 1000, GID: 1001, Groups: []uint32{1001, 50000, 44}, Name: "app", Home: "/home/app"}},
		{name: "uid 0 beats image", sc: &sc{RunAsUser: id(0)}, image: "app", want: ResolvedUser{Groups: []uint32{0}, Name: "root", Home: "/root"}},
		{name: "uid beats bad image", sc: &sc{RunAsUser: id(5)}, image: "ghost", want: ResolvedUser{UID: 5, Groups: []uint32{0}}},
		{name: "uid and gid", sc: &sc{RunAsUser: id(1000), RunAsGroup: id(7)}, want: ResolvedUser{UID: 1000, GID: 7, Groups: []uint32{7, 50000, 44}, Name: "app", Home: "/home/app"}},
		{name: "user name", sc: &sc{RunAsUsername: "nobody"}, want: ResolvedUser{UID: 65534, GID: 65534, Groups: []uint32{65534, 44}, Name: "nobody", Home: "/"}},
		{name: "user name and gid", sc: &sc{RunAsUsername: "nobody", RunAsGroup: id(1)}, want: ResolvedUser{UID: 65534, GID: 1, Groups: []uint32{1, 44}, Name: "nobody", Home: "/"}},
		{name: "unknown user name", sc: &sc{RunAsUsername: "ghost"}, err: "ghost"},
		{name: "number as user name", sc: &sc{RunAsUsername: "4294967296"}, err: "4294967296"},
		{name: "user name with group", sc: &sc{RunAsUsername: "app:video"}, err: "app:video"},
		{name: "group alone", sc: &sc{RunAsGroup: id(1)}, image: "app", err: "run_as_group but without"},
		{name: "both", sc: &sc{RunAsUser: id(1), RunAsUsername: "app"}, err: "both"},
		{name: "negative uid", sc: &sc{RunAsUser: id(-1)}, err: "out of range"},
		{name: "uid past the end", sc: &sc{RunAsUser: id(1 << 31)}, err: "out of range"},
		{name: "gid past the end", sc: &sc{RunAsUser: id(1), RunAsGroup: id(1 << 32)}, err: "out of range"},
		{name: "group past the end", sc: &sc{SupplementalGroups: []int64{1 << 31}}, err: "out of range"},
		{name: "merge", sc: &sc{RunAsUser: id(1000), SupplementalGroups: []int64{1234, 44, 1234}}, want: ResolvedUser{UID: 1000, GID: 1001, Groups: []uint32{1001, 1234, 44, 50000}, Name: "app", Home: "/home/app"}},
		{name: "strict", sc: &sc{RunAsUser: id(1000), SupplementalGroups: []int64{1234}, SupplementalGroupsPolicy: strict}, want: ResolvedUser{UID: 1000, GID: 1001, Groups: []uint32{1001, 1234}, Name: "app", Home: "/home/app"}},
		{name: "strict without groups", sc: &sc{SupplementalGroupsPolicy: strict}, image: "app", want: ResolvedUser{UID: 1000, GID: 1001, Groups: []uint32{1001}, Name: "app", Home: "/home/app"}},
		{name: "unknown policy", sc: &sc{SupplementalGroupsPolicy: 9}, err: "policy"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: tt.sc}}
			got, err := ResolveUser(root, cfg, tt.image)
			if tt.err != "" {
				if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("ResolveUser() = %+v, %v, want ErrInvalid with %q", got, err, tt.err)
				}
				return
			}

			if err != nil || got.UID != tt.want.UID || got.GID != tt.want.GID || !slices.Equal(got.Groups, tt.want.Groups) ||
				got.Name != tt.want.Name || got.Home != tt.want.Home {
				t.Errorf("ResolveUser() = %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}
