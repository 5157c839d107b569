package spec

import (
	"reflect"
	"testing"
)

// control are names of annotations and labels that some runtime has taken for
// orders, with what they would order.
var control = map[string]string{
	"io.kubernetes.cri-o.UnifiedCgroup.web":             "pids.max=7",
	"io.kubernetes.cri-o.UnifiedCgroup.":                "pids.max=7",
	"io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw":    "true",
	"io.kubernetes.cri-o.userns-mode":                   "auto",
	"io.kubernetes.cri-o.Devices":                       "/dev/kmsg:/dev/hostile:rwm",
	"io.kubernetes.cri-o.ShmSize":                       "12345678",
	"io.kubernetes.cri-o.umask":                         "0123",
	"io.kubernetes.cri-o.LinkLogs":                      "/hostile",
	"io.kubernetes.cri-o.seccompNotifierAction":         "stop",
	"io.kubernetes.cri-o.PodLinuxResources":             `{"cpuQuota":1}`,
	"seccomp-profile.kubernetes.cri-o.io":               "unconfined",
	"seccomp-profile.kubernetes.cri-o.io/web":           "unconfined",
	"org.systemd.property.ExecStartPre":                 "[('/bin/touch', ['touch', '/hostile'], false)]",
	"org.systemd.property.DeviceAllow":                  "[('/dev/sda', 'rwm')]",
	"run.oci.systemd.subgroup":                          "hostile",
	"run.oci.systemd.force_cgroup_v1":                   "/hostile",
	"run.oci.hooks.stderr":                              "/hostile",
	"run.oci.seccomp.receiver":                          "/hostile",
	"run.oci.handler":                                   "krun",
	"io.kubernetes.cri.container-type":                  "sandbox",
	"io.containerd.runc.v2.group":                       "hostile",
	"containerd.io/restart.loguri":                      "binary:///bin/touch?id=hostile",
	"io.containerd.container.log-uri":                   "binary:///bin/touch?id=hostile",
	"nerdctl/log-uri":                                   "binary:///bin/touch?id=hostile",
	"nerdctl/mounts":                                    `[{"Source":"/","Destination":"/host"}]`,
	"nerdctl/networks":                                  `["host"]`,
	"container.apparmor.security.beta.kubernetes.io/w":  "unconfined",
	"container.seccomp.security.alpha.kubernetes.io/we": "unconfined",
	"security.alpha.kubernetes.io/sysctls":              "kernel.shm_rmid_forced=1",
	"rdt.resources.beta.kubernetes.io/pod":              "hostile",
	"cpu-quota.crio.io":                                 "disable",
	"cpu-shared.crio.io":                                "enable",
	"io.podman.annotations.privileged":                  "TRUE",
	"io.podman.annotations.label":                       "disable",
	"org.opencontainers.image.stopSignal":               "SIGSTOP",
}

// wantNoEffect wants the same container with the orders as without.
func wantNoEffect(t *testing.T, give func(in *Input, orders map[string]string)) {
	t.Helper()
	want, err := Container(testInput())
	if err != nil {
		t.Fatal(err)
	}

	for key, value := range control {
		in := testInput()
		give(&in, map[string]string{key: value})
		got, err := Container(in)
		if err != nil {
			t.Errorf("%s: %v", key, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s=%s changes the container from\n%+v\nto\n%+v", key, value, want.Spec, got.Spec)
		}
	}
}

// No annotation of a pod or container is an order, not to the cgroup
// (CVE-2023-6476) and not to systemd (CVE-2024-3154).
func TestCVE20236476AndCVE20243154AnnotationsOrderNothing(t *testing.T) {
	wantNoEffect(t, func(in *Input, orders map[string]string) {
		in.Config.Annotations, in.Config.Labels = orders, orders
		in.Sandbox.Annotations, in.Sandbox.Labels = orders, orders
	})
}

// No label of an image is an order (CVE-2026-53488).
func TestCVE202653488ImageLabelsOrderNothing(t *testing.T) {
	wantNoEffect(t, func(in *Input, orders map[string]string) { in.Image.Labels = orders })
}
