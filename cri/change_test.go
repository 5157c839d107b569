package cri

import (
	"math"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// request returns a valid request for a call; a rich one has many fields set.
// Its fields are filled by name, so that those of a new call are, too.
func (s *scene) request(r rpc, rich bool) protoreflect.Message {
	m := r.request.New()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch fd.Name() {
		case "pod_sandbox_id":
			m.Set(fd, protoreflect.ValueOfString(s.sandbox))
		case "container_id":
			id := s.running
			if r.name() == "StartContainer" {
				id = s.created
			}
			m.Set(fd, protoreflect.ValueOfString(id))
		case "cmd":
			m.Mutable(fd).List().Append(protoreflect.ValueOfString("true"))
		case "port":
			m.Mutable(fd).List().Append(protoreflect.ValueOfInt32(80))
		case "stdout", "verbose":
			m.Set(fd, protoreflect.ValueOfBool(true))
		}

		if fd.Message() == nil || fd.IsList() || fd.IsMap() {
			continue
		}
		if part := s.part(fd.Message().FullName(), rich); part != nil {
			m.Set(fd, protoreflect.ValueOfMessage(part.ProtoReflect()))
		}
	}

	return m
}

// part is a message of a request, nil for one that may be empty.
func (s *scene) part(name protoreflect.FullName, rich bool) proto.Message {
	sandbox, container := s.sandboxConfig(), containerConfig("other")
	sandbox.Metadata.Name = "other"
	if rich {
		s.enrichSandbox(sandbox)
		s.enrichContainer(container)
	}

	for _, part := range []proto.Message{
		sandbox, container, richResources(), &runtimeapi.ImageSpec{Image: fixtureImage},
		&runtimeapi.AuthConfig{Username: "me", Password: "secret"},
	} {
		if part.ProtoReflect().Descriptor().FullName() == name {
			return part
		}
	}

	return nil
}

// enrichSandbox requests everything that needs no root.
func (s *scene) enrichSandbox(cfg *runtimeapi.PodSandboxConfig) {
	cfg.Hostname, cfg.Labels = "web-1", map[string]string{"app": "web"}
	cfg.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M"}
	cfg.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"svc.local"}, Options: []string{"ndots:5"}}
	cfg.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080}}
	cfg.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1"}
	cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	cfg.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	cfg.Linux.Overhead, cfg.Linux.Resources = richResources(), richResources()
}

func (s *scene) enrichContainer(cfg *runtimeapi.ContainerConfig) {
	cfg.Command, cfg.Args, cfg.WorkingDir = []string{"sleep"}, []string{"1"}, "/work"
	cfg.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("B")}}
	cfg.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: fixtureImage}, ImageSubPath: "a"},
		{ContainerPath: "/mnt", HostPath: s.dir + "/host/data", Readonly: true},
		{ContainerPath: "/data", HostPath: s.dir + "/host/data"},
	}

	cfg.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/zero2", HostPath: "/dev/zero", Permissions: "rw"}}
	cfg.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/gpu=0"}}
	cfg.Linux.Resources = richResources()
	sc := cfg.Linux.SecurityContext
	sc.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_RAW"}, DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_RAW"}}
	sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 1000}
	sc.SupplementalGroups, sc.NoNewPrivs, sc.ReadonlyRootfs = []int64{5}, true, true
	sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
	sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	sc.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
}

func richResources() *runtimeapi.LinuxContainerResources {
	return &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 100, CpusetCpus: "0",
	}
}

// changer changes fields of a message as directed by its data.
type changer struct {
	s    *scene
	data []byte
}

func (c *changer) next() int {
	if len(c.data) == 0 {
		return 0
	}
	b := c.data[0]
	c.data = c.data[1:]
	return int(b)
}

// change makes changes as long as there is data.
func (c *changer) change(m protoreflect.Message) {
	for len(c.data) > 0 {
		c.one(m, 0)
	}
}

// maxNesting is how deep messages in messages go.
const maxNesting = 8

// one changes one field of a message, or of one in it.
func (c *changer) one(m protoreflect.Message, nesting int) {
	fields := m.Descriptor().Fields()
	if fields.Len() == 0 || nesting > maxNesting {
		c.next()
		return
	}

	fd := fields.Get(c.next() % fields.Len())
	how := c.next()
	if nesting == 0 && how%8 != 0 {
		fd = messageOf(fields, fd)
	}

	switch {
	case how%16 == 0:
		m.Clear(fd)
	case fd.IsMap():
		entries := m.Mutable(fd).Map()
		key := c.scalar(fd.MapKey()).MapKey()
		if fd.MapValue().Message() != nil {
			v := entries.NewValue()
			c.one(v.Message(), nesting+1)
			entries.Set(key, v)
		} else {
			entries.Set(key, c.scalar(fd.MapValue()))
		}
	case fd.IsList():
		c.element(fd, m.Mutable(fd).List(), how, nesting)
	case fd.Message() != nil:
		c.one(m.Mutable(fd).Message(), nesting+1)
	default:
		m.Set(fd, c.scalar(fd))
	}
}

// messageOf returns a field that is a message in place of one that is not, if
// there is one: with a wrong id a call fails before the rest is used.
func messageOf(fields protoreflect.FieldDescriptors, fd protoreflect.FieldDescriptor) protoreflect.FieldDescriptor {
	for i := range fields.Len() {
		if at := fields.Get((fd.Index() + i) % fields.Len()); at.Message() != nil {
			return at
		}
	}
	return fd
}

// element adds an element to a list, or changes one.
func (c *changer) element(fd protoreflect.FieldDescriptor, list protoreflect.List, how, nesting int) {
	switch {
	case fd.Message() == nil:
		if list.Append(c.scalar(fd)); how%4 == 1 {
			list.Set(0, c.scalar(fd))
		}
	case list.Len() > 0 && how%4 != 0:
		c.one(list.Get(c.next()%list.Len()).Message(), nesting+1)
	default:
		v := list.NewElement()
		for range 1 + c.next()%4 {
			c.one(v.Message(), nesting+1)
		}
		list.Append(v)
	}
}

func (c *changer) scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	n := c.number()
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n%2 == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(c.text(int(uint8(n)))))
	default:
		return protoreflect.ValueOfString(c.text(int(uint8(n))))
	}
}

// number is a small number, or one at a limit of its type.
func (c *changer) number() int64 {
	limits := []int64{-1, -2, math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64, math.MaxUint32, 1 << 20, 65535, 65536}
	n := c.next()
	if n >= 128 && n < 128+len(limits) {
		return limits[n-128]
	}
	return int64(n)
}

// text is one with a meaning in some field, or up to 16 bytes of the data.
func (c *changer) text(which int) string {
	known := []string{
		"", c.s.sandbox, c.s.running, c.s.created, c.s.created[:8], fixtureImage, ".", "..", "../../x", "/", "/dev", "/dev/null",
		"/proc", "/sys", "/etc/hosts", "/tmp/a/b", "a/b", "a\x00b", "a\nb", "\u202e", strings.Repeat("x", 300), strings.Repeat("/x", 5000),
		"unconfined", "runtime/default", "localhost/x", "localhost//etc/passwd", "rw", "rwm", "0-1", "10M", "memory.high", "max",
		"kernel.shm_rmid_forced", "net.ipv4.ip_forward", "kubernetes.io/ingress-bandwidth", "CAP_SYS_ADMIN", "ALL", "root", "1000:1000",
		"10.0.0.1", "vendor.example/gpu=0", "x.slice", "/kubepods/pod1", "sha256:" + strings.Repeat("0", 64), "a@b", "HTTP://x", "A=B", "noexec",
	}

	if which%4 != 0 {
		return known[which%len(known)]
	}
	n := min(which%17, len(c.data))
	text := string(c.data[:n])
	c.data = c.data[n:]
	return strings.ToValidUTF8(text, "\ufffd")
}

// confine moves paths that a request would create below the test's directory.
func (s *scene) confine(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
		case fd.Message() != nil && fd.IsList():
			for i := range v.List().Len() {
				s.confine(v.List().Get(i).Message())
			}
		case fd.Message() != nil:
			s.confine(v.Message())
		case fd.Name() == "log_directory", fd.Name() == "host_path" && m.Descriptor().Name() == "Mount":
			if path := v.String(); filepath.IsAbs(path) && !strings.HasPrefix(filepath.Clean(path), s.dir+"/") {
				m.Set(fd, protoreflect.ValueOfString(s.dir+"/host"+filepath.Clean(path)))
			}
		}
		return true
	})
}

// confined is confine for the bytes of a request, if they are one.
func (s *scene) confined(t *testing.T, r rpc, data []byte) []byte {
	t.Helper()
	m := r.request.New()
	if proto.Unmarshal(data, m.Interface()) != nil {
		return data
	}

	before := proto.Clone(m.Interface())
	if s.confine(m); proto.Equal(before, m.Interface()) {
		return data
	}

	out, err := proto.Marshal(m.Interface())
	if err != nil {
		t.Fatal(err)
	}
	return out
}
