package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"crisp/test/testkit"
)

const module = "../../hack/package/crisp.cil"

// The minimum of a policy, and the types of the two known ones. They only
// define names: the rules of the real policies are not tested.
const (
	basePolicy = `
(class security (check_context)) (class file (write open read getattr)) (class dir (search getattr)) (class system (module_request))
(classorder (security file dir system))
(sid kernel) (sidorder (kernel)) (sensitivity s0) (sensitivityorder (s0))
(user system_u) (role object_r) (role system_r) (type kernel_t) (type security_t) (type sysctl_t)
(userrole system_u object_r) (userrole system_u system_r) (userlevel system_u (s0)) (userrange system_u ((s0) (s0)))
(typeattribute every) (typeattributeset every (all)) (roletype object_r every)
(roletype system_r kernel_t) (sidcontext kernel (system_u system_r kernel_t ((s0) (s0))))
(allow kernel_t security_t (security (check_context)))
`
	debianTypes = `
(type container_engine_t) (type container_engine_exec_t) (type container_config_t) (type container_runtime_t) (type container_var_lib_t)
(typeattribute kubernetes_container_engine_domain) (roletype system_r container_engine_t)
`
	containerSELinuxTypes = `
(type container_runtime_t) (type container_runtime_exec_t) (type container_config_t) (type container_var_run_t) (type container_var_lib_t)
(type container_engine_t) (roletype system_r container_runtime_t)
`
)

// TestModuleFits compiles the module with a policy of each kind, and checks the
// types of crisp's files.
func TestModuleFits(t *testing.T) {
	if _, err := exec.LookPath("secilc"); err != nil {
		testkit.Skip(t, "secilc", err.Error())
	}
	for _, test := range []struct {
		name, types string
		want        map[string]string
	}{
		{"Debian", debianTypes, map[string]string{
			"/usr/bin/crisp": "container_engine_exec_t", "/usr/local/bin/crisp-keeper": "container_engine_exec_t",
			"/etc/crisp/config.toml": "container_config_t", "/run/crisp/crisp.sock": "container_runtime_t", "/var/lib/crisp/pods": "container_var_lib_t",
		}},
		{"container-selinux", containerSELinuxTypes, map[string]string{
			"/usr/bin/crisp": "container_runtime_exec_t", "/usr/local/bin/crisp-keeper": "container_runtime_exec_t",
			"/etc/crisp/config.toml": "container_config_t", "/run/crisp/crisp.sock": "container_var_run_t", "/var/run/crisp": "container_var_run_t",
			"/var/lib/crisp/pods": "container_var_lib_t",
		}},
		{"another", "", map[string]string{"/usr/bin/crisp": "", "/run/crisp": ""}},
	} {
		t.Run(test.name, func(t *testing.T) {
			contexts := compile(t, basePolicy+test.types)
			for _, path := range programs {
				if want := test.want["/usr/bin/crisp"]; want != "" && !strings.Contains(contexts, path+"\t--\t") {
					t.Errorf("a pattern of the policy's for /usr/bin counts for more than what is said of %s:\n%s", path, contexts)
				}
			}

			for path, want := range test.want {
				if got := typeOf(contexts, path); got != want {
					t.Errorf("%s is %q, want %q", path, got, want)
				}
			}
		})
	}
}

// compile compiles the module with a policy and returns the lines about files.
func compile(t *testing.T, policy string) string {
	t.Helper()
	dir := t.TempDir()
	base, contexts := filepath.Join(dir, "base.cil"), filepath.Join(dir, "file_contexts")
	if err := os.WriteFile(base, []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}

	cmd := exec.CommandContext(t.Context(), "secilc", "--mls", "true", "--output", filepath.Join(dir, "policy"), "--filecontexts", contexts, base, module)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile: %v: %s", err, out)
	}

	text, err := os.ReadFile(contexts)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// typeOf is the type of the first expression that matches a path.
func typeOf(contexts, path string) string {
	for line := range strings.Lines(contexts) {
		f := strings.Fields(line)
		if len(f) < 2 || !regexp.MustCompile("^"+f[0]+"$").MatchString(path) {
			continue
		}
		return strings.Split(f[len(f)-1], ":")[2]
	}
	return ""
}
