package cadvisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"crisp/cri/rpcerr"
)

var errUnknown = errors.New("not found")

// scene is a server of some containers, and a client with the types of
// containerd's own API.
func scene(t *testing.T, containers map[string]Container) *grpc.ClientConn {
	t.Helper()
	g := grpc.NewServer(Options(rpcerr.New([]rpcerr.Rule{
		{Err: errUnknown, Code: codes.NotFound}, {Err: ErrRequest, Code: codes.InvalidArgument}, {Err: ErrNotStarted, Code: codes.NotFound},
	}).Unary())...)

	s := &Server{Version: "1.2.3", Source: func(id string) (Container, error) {
		c, ok := containers[id]
		if !ok {
			return c, fmt.Errorf("container %s: %w", id, errUnknown)
		}
		return c, nil
	}}

	s.Register(g)
	l := bufconn.Listen(1 << 16)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	conn, err := grpc.NewClient("passthrough:///cadvisor", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestAnswers(t *testing.T) {
	created := time.Date(2026, 11, 28, 1, 2, 3, 4, time.UTC)
	running := Container{
		ID: "r", Labels: map[string]string{"io.kubernetes.pod.name": "web", "empty": ""}, Image: "busybox:1", CreatedAt: created.UnixNano(),
		Pid: 77, Spec: []byte(`{"process":{}}`),
	}

	sandbox := running
	sandbox.ID, sandbox.Sandbox = "s", true
	ended := Container{ID: "e", Pid: 78, Exited: true, ExitCode: 137}
	made, begun := Container{ID: "m"}, Container{ID: "b", Sandbox: true}
	conn := scene(t, map[string]Container{"r": running, "s": sandbox, "e": ended, "m": made, "b": begun})
	ctx := t.Context()

	for _, id := range []string{"b", "m"} {
		if _, err := tasksapi.NewTasksClient(conn).Get(ctx, &tasksapi.GetRequest{ContainerID: id}); status.Code(err) != codes.NotFound {
			t.Errorf("the process of %s, which was not started: %v", id, err)
		}
	}

	v, err := versionapi.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	if err != nil || v.Version != "1.2.3" {
		t.Errorf("version %v, %v", v, err)
	}

	containers := containersapi.NewContainersClient(conn)
	for id, kind := range map[string]string{"r": "container", "s": "sandbox"} {
		got, err := containers.Get(ctx, &containersapi.GetContainerRequest{ID: id})
		if err != nil {
			t.Fatal(err)
		}

		c := got.Container
		labels := map[string]string{"io.kubernetes.pod.name": "web", "empty": "", "io.cri-containerd.kind": kind}
		if c.ID != id || c.Image != "busybox:1" || !maps.Equal(c.Labels, labels) || string(c.Spec.GetValue()) != `{"process":{}}` || !c.CreatedAt.AsTime().Equal(created) {
			t.Errorf("container %v", c)
		}

		if unknown := c.ProtoReflect().GetUnknown(); len(unknown) > 0 {
			t.Errorf("container has fields that there are not: %q", unknown)
		}
	}

	if _, ok := running.Labels["io.cri-containerd.kind"]; ok {
		t.Error("the record's labels were changed")
	}

	tasks := tasksapi.NewTasksClient(conn)
	for id, want := range map[string]*tasktypes.Process{
		"r": {ContainerID: "r", ID: "r", Pid: 77, Status: tasktypes.Status_RUNNING},
		"e": {ContainerID: "e", ID: "e", Pid: 78, Status: tasktypes.Status_STOPPED, ExitStatus: 137},
	} {
		got, err := tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: id})
		if err != nil || !proto.Equal(got.Process, want) {
			t.Errorf("task %v, %v, want %v", got, err, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	conn := scene(t, map[string]Container{"made": {ID: "made", Sandbox: true}})
	ctx := t.Context()
	containers, tasks := containersapi.NewContainersClient(conn), tasksapi.NewTasksClient(conn)
	get := func(id string) error {
		_, err := containers.Get(ctx, &containersapi.GetContainerRequest{ID: id})
		return err
	}

	task := func(id string) error {
		_, err := tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: id})
		return err
	}

	list := func() error {
		_, err := containers.List(ctx, &containersapi.ListContainersRequest{})
		return err
	}

	kill := func() error {
		_, err := tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: "made", Signal: 9})
		return err
	}

	for name, tc := range map[string]struct {
		err  error
		want codes.Code
	}{
		"a container that is not there": {get("other"), codes.NotFound},
		"no container":                  {get(""), codes.InvalidArgument},
		"a task that is not there":      {task("other"), codes.NotFound},
		"a task not yet started":        {task("made"), codes.NotFound},
		"an ID beyond all IDs":          {get(string(make([]byte, 2*maxRequest))), codes.ResourceExhausted},
		"a list":                        {list(), codes.Unimplemented},
		"a change":                      {kill(), codes.Unimplemented},
	} {
		if got := status.Code(tc.err); got != tc.want {
			t.Errorf("%s: %v, want %v", name, tc.err, tc.want)
		}
	}
}

// FuzzRequest reads what a client may send.
func FuzzRequest(f *testing.F) {
	for _, m := range []proto.Message{
		&containersapi.GetContainerRequest{ID: "abc"}, &tasksapi.GetRequest{ContainerID: "abc", ExecID: "x"}, &emptypb.Empty{},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := firstField(data)
		var want tasksapi.GetRequest
		// Where containerd's own types find an ID that is text, so does this.
		if proto.Unmarshal(data, &want) == nil && want.ContainerID != got && (err == nil || want.ContainerID != "") {
			t.Errorf("read %q, %v, want %q", got, err, want.ContainerID)
		}
	})
}
