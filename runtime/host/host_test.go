package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// machine makes a prober of a root with the given files.
func machine(t *testing.T, files map[string]string) *prober {
	t.Helper()
	root := t.TempDir() + "/"
	for path, content := range files {
		path = root + path
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &prober{root: root}
}

// The kernel under the tests is new enough to answer every probe, given the privileges.
func TestProbeAnswers(t *testing.T) {
	f := Probe()
	if f.Kernel.Major < 5 || f.LastCap < 38 || len(f.SeccompActions) == 0 {
		t.Errorf("kernel %v, last capability %d, seccomp actions %v", f.Kernel, f.LastCap, f.SeccompActions)
	}

	if os.Geteuid() != 0 {
		return
	}
	for _, err := range f.Problems {
		t.Error(err)
	}

	for what, a := range map[string]Answer{
		"recursive read-only": f.RecursiveReadOnly, "id-mapped mounts": f.IDMapMounts,
	} {
		if f.Kernel.AtLeast(5, 12) && a != Yes {
			t.Errorf("%s on Linux %v: %v", what, f.Kernel, a)
		}
	}

	if want := answer(f.Kernel.AtLeast(6, 15)); f.CloneDetached != want {
		t.Errorf("clones of detached mounts on Linux %v: %v, want %v", f.Kernel, f.CloneDetached, want)
	}
}

func TestProbeMissingMachine(t *testing.T) {
	p := machine(t, nil)
	p.kernel()
	p.privileges()
	p.cgroup()
	p.security()
	p.hugePages()

	f := p.facts
	for what, a := range map[string]Answer{
		"cgroup v2": f.CgroupV2, "sys resource": f.SysResource, "exit through pidfd": f.PidfdExit,
	} {
		if a != Unknown {
			t.Errorf("%s: %v, want unknown", what, a)
		}
	}

	for what, a := range map[string]Answer{"AppArmor": f.AppArmor, "SELinux": f.SELinux, "user namespaces": f.UserNS} {
		if a != No {
			t.Errorf("%s: %v, want no", what, a)
		}
	}

	if len(f.Problems) == 0 {
		t.Error("no problem was reported")
	}
}

func TestPrivileges(t *testing.T) {
	const full = "Name:\tx\nCapInh:\t0\nCapPrm:\t000001ffffffffff\nCapEff:\t0\nCapBnd:\t000001ffffffffff\n"
	files := func(status, uidMap string) map[string]string {
		return map[string]string{
			"proc/self/status": status, "proc/self/uid_map": uidMap,
			"proc/self/oom_score_adj": "-999\n", "proc/sys/kernel/cap_last_cap": "40\n",
		}
	}

	for _, tt := range []struct {
		name, status, uidMap string
		initial, resource    Answer
	}{
		{"root", full, "         0          0 4294967295\n", Yes, Yes},
		{"root of a user namespace", full, "0 100000 65536\n", No, No},
		{"two ranges", full, "0 0 1\n1 1 4294967294\n", No, No},
		{"without CAP_SYS_RESOURCE", "CapPrm:\t000001fffeffffff\nCapBnd:\t000001ffffffffff\n", "0 0 4294967295", Yes, No},
		{"bounded", "CapPrm:\t000001ffffffffff\nCapBnd:\t000001fffeffffff\n", "0 0 4294967295", Yes, No},
	} {
		p := machine(t, files(tt.status, tt.uidMap))
		p.privileges()
		f := p.facts
		if f.InitialUserNS != tt.initial || f.SysResource != tt.resource || len(f.Problems) > 0 {
			t.Errorf("%s: initial %v, resource %v, problems %v", tt.name, f.InitialUserNS, f.SysResource, f.Problems)
		}
		if f.OOMScoreAdj != -999 || f.LastCap != 40 {
			t.Errorf("%s: oom_score_adj %d, last capability %d", tt.name, f.OOMScoreAdj, f.LastCap)
		}
	}

	p := machine(t, files("CapPrm:\t1\n", "0 0 4294967295"))
	if p.privileges(); len(p.facts.Problems) == 0 || p.facts.Capabilities != 0 {
		t.Errorf("half a status file: capabilities %v, problems %v", p.facts.Capabilities, p.facts.Problems)
	}
}

func TestSecurity(t *testing.T) {
	p := machine(t, map[string]string{
		"sys/module/apparmor/parameters/enabled": "Y\n",
		"sys/kernel/security/apparmor/profiles":  "",
		"proc/sys/kernel/seccomp/actions_avail":  "kill_process errno allow\n",
		"proc/self/ns/user":                      "",
		"proc/sys/user/max_user_namespaces":      "0\n",
		"sys/fs/selinux/enforce":                 "a directory that is no selinuxfs",
	})

	p.security()
	f := p.facts
	if f.AppArmor != Yes || f.SELinux != No || f.UserNS != No {
		t.Errorf("AppArmor %v, SELinux %v, user namespaces %v", f.AppArmor, f.SELinux, f.UserNS)
	}
	if !slices.Equal(f.SeccompActions, []string{"kill_process", "errno", "allow"}) {
		t.Errorf("seccomp actions %q", f.SeccompActions)
	}
}

func TestAppArmorWithoutItsFiles(t *testing.T) {
	p := machine(t, map[string]string{"sys/module/apparmor/parameters/enabled": "Y\n"})
	p.security()
	reported := slices.ContainsFunc(p.facts.Problems, func(err error) bool { return strings.Contains(err.Error(), "securityfs") })
	if p.facts.AppArmor != No || !reported {
		t.Errorf("AppArmor %v, problems %v", p.facts.AppArmor, p.facts.Problems)
	}
}

func TestHugePages(t *testing.T) {
	p := machine(t, map[string]string{
		"sys/kernel/mm/hugepages/hugepages-1048576kB/nr": "",
		"sys/kernel/mm/hugepages/hugepages-64kB/nr":      "",
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr":    "",
		"sys/kernel/mm/hugepages/other":                  "",
	})
	p.hugePages()
	if got, want := p.facts.HugePageSizes, []string{"64KB", "2MB", "1GB"}; !slices.Equal(got, want) {
		t.Errorf("sizes %v, want %v", got, want)
	}
}

func TestVersion(t *testing.T) {
	v, err := parseVersion("6.12.43+deb13-amd64")
	if err != nil || v.Major != 6 || v.Minor != 12 || v.String() != "6.12.43+deb13-amd64" {
		t.Errorf("parsed %+v, %v", v, err)
	}
	if !v.AtLeast(5, 99) || !v.AtLeast(6, 12) || v.AtLeast(6, 13) || v.AtLeast(7, 0) {
		t.Errorf("comparisons of %v", v)
	}
	if _, err := parseVersion("linux"); err == nil {
		t.Error("a release without numbers was parsed")
	}
}
