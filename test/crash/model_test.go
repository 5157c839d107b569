//go:build crash

package crash

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	seed    = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of random calls and moments")
	forTime = flag.Duration("calls", 40*time.Second, "how long random calls are made")
	kills   = flag.Int("moments", 60, "how many kills at random moments are tried for each kind of pod")
)

// Sizes of the model.
const (
	modelPods       = 3
	modelContainers = 2 // in each pod
)

// modelPod is the expected state of a pod according to the CRI's rules.
type modelPod struct {
	cfg        *runtimeapi.PodSandboxConfig
	id         string // "" for none
	ready      bool
	containers [modelContainers]modelContainer
	// image is whether the containers' image is present; all pods share it.
	image *bool
}

type modelContainer struct {
	cfg   *runtimeapi.ContainerConfig
	id    string // "" for none
	state runtimeapi.ContainerState
}

// action is a call with its effect on the model.
type action struct {
	name string
	// call makes the call and returns the ID in its response, if there is one.
	call func(ctx context.Context) (string, error)
	// fails means that it must be refused.
	fails bool
	// once means that repeating it after a success is an error.
	once bool
	// then updates the model after a success.
	then func(id string)
}

// TestModel makes random calls, some of them cancelled, made twice concurrently,
// in conflict with another one, or interrupted by a kill of daemon or keeper, and
// compares what is listed with a model. Sessions are open meanwhile, which must
// work until something ends them.
func TestModel(t *testing.T) {
	n := newNode(t, untraced)
	s := n.newScene(t)
	t.Logf("-seed %d", *seed)
	random := rand.New(rand.NewPCG(*seed, 0))
	pods := n.modelPods(t, modelPods)
	for _, p := range pods {
		for _, c := range p.containers {
			c.cfg.Command = []string{"sh", "-c", talker}
		}
	}

	count := map[string]int{}
	calls := 0
	var past []string
	var open openSessions
	defer open.closeAll()

	for end := time.Now().Add(*forTime); time.Now().Before(end) && !t.Failed(); {
		i, j := random.IntN(modelPods), random.IntN(modelContainers)
		all := n.actions(pods[i], &pods[i].containers[j])
		a := all[random.IntN(len(all))]
		if random.IntN(2) == 0 { // so that there is something to remove
			a = all[random.IntN(3)]
		}

		way := []string{"", "", "cancelled", "twice", "killed", "keeper killed", "conflict"}[random.IntN(7)]
		past = append(past, fmt.Sprintf("%s pod %d container %d %s", a.name, i, j, way))
		count[way]++
		calls++

		switch way {
		case "keeper killed":
			n.killDuring(t, a, time.Duration(random.IntN(20))*time.Millisecond)
			s.retire(pods[i])
			*pods[i].image = n.has(t, busybox)
		case "conflict":
			b := all[random.IntN(len(all))]
			past = append(past, b.name)
			n.conflict(t, a, b)
			s.retire(pods[i])
			*pods[i].image = n.has(t, busybox)
		default:
			n.perform(t, a, way, time.Duration(random.IntN(60))*time.Millisecond)
			if way == "killed" {
				open.kills++
			}
		}

		if random.IntN(4) == 0 {
			past = append(past, fmt.Sprintf("make container %d of pod %d run", j, i))
			n.makeRun(t, pods[i], &pods[i].containers[j])
		}

		compare(s, pods)
		open.compare(s, pods)
		if p := pods[random.IntN(modelPods)]; p.ready {
			past = append(past, open.add(s, p, random))
		}
	}

	if t.Failed() {
		t.Logf("the last calls: %q", past[max(0, len(past)-30):])
	}
	open.closeAll()
	n.tidy(t, s)
	n.wantNoImage(t)

	passed := "yes"
	if t.Failed() {
		passed = "no"
	}

	publish(t, "random calls", fmt.Sprintf(`| calls | cancelled | made twice | in conflict with another | with a kill of the daemon | of the keeper | sessions | passed |
| --- | --- | --- | --- | --- | --- | --- | --- |
| %d | %d | %d | %d | %d | %d | %d | %s |
`, calls, count["cancelled"], count["twice"], count["conflict"], count["killed"], count["keeper killed"], open.count, passed))
}

// wantNoImage removes the containers' image, and checks that nothing of it is left.
func (n *node) wantNoImage(t *testing.T) {
	t.Helper()
	n.removeImage(t, busybox)
	var left []string
	for end := time.Now().Add(leaveTime); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		left = slices.DeleteFunc(n.imageFiles(t), func(path string) bool {
			return filepath.Base(filepath.Dir(path)) == "image" || filepath.Base(path) == "sha256" || strings.Contains(path, "/layers/empty")
		})
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("leftovers of removed images: %q", left)
}

// makeRun makes the calls that get a container running, as far as the rules allow.
func (n *node) makeRun(t *testing.T, p *modelPod, c *modelContainer) {
	t.Helper()
	for _, name := range []string{"PullImage", "RunPodSandbox", "CreateContainer", "StartContainer"} {
		all := n.actions(p, c)
		a := all[slices.IndexFunc(all, func(a action) bool { return a.name == name })]
		if !a.fails {
			n.perform(t, a, "", 0)
		}
	}
}

func (n *node) modelPods(t *testing.T, count int) []*modelPod {
	var pods []*modelPod
	image := n.has(t, busybox)
	for i := range count {
		s := n.newScene(t)
		s.pod.Metadata.Name = fmt.Sprintf("model-%d", i)
		s.pod.PortMappings = nil
		s.pod.LogDirectory = filepath.Join(n.Dir, "logs", s.pod.Metadata.Name)

		p := &modelPod{cfg: s.pod, image: &image}
		for j := range modelContainers {
			c := n.newScene(t).container
			c.Metadata.Name = fmt.Sprintf("c%d", j)
			c.LogPath = c.Metadata.Name + ".log"
			p.containers[j].cfg = c
		}
		pods = append(pods, p)
	}

	return pods
}

// actions lists the calls for a pod and one of its containers. IDs of what does not
// exist are made up.
func (n *node) actions(p *modelPod, c *modelContainer) []action {
	r := n.Runtime
	podID, containerID := orNone(p.id), orNone(c.id)
	return []action{{
		name: "RunPodSandbox", fails: p.id != "" && !p.ready,
		call: func(ctx context.Context) (string, error) {
			a, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.cfg})
			return a.GetPodSandboxId(), err
		},
		then: func(id string) { p.id, p.ready = id, true },
	}, {
		name: "CreateContainer", fails: !p.ready || c.id == "" && !*p.image,
		call: func(ctx context.Context) (string, error) {
			a, err := r.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: c.cfg, SandboxConfig: p.cfg})
			return a.GetContainerId(), err
		},
		then: func(id string) {
			if c.id != id {
				c.id, c.state = id, runtimeapi.ContainerState_CONTAINER_CREATED
			}
		},
	}, {
		name: "StartContainer", fails: c.id == "" || c.state != runtimeapi.ContainerState_CONTAINER_CREATED || !p.ready, once: true,
		call: func(ctx context.Context) (string, error) {
			_, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: containerID})
			return "", err
		},
		then: func(string) { c.state = runtimeapi.ContainerState_CONTAINER_RUNNING },
	}, {
		name: "StopContainer",
		call: func(ctx context.Context) (string, error) {
			_, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: containerID})
			return "", err
		},
		then: func(string) { c.end() },
	}, {
		name: "RemoveContainer",
		call: func(ctx context.Context) (string, error) {
			_, err := r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: containerID})
			return "", err
		},
		then: func(string) { c.id = "" },
	}, {
		name: "StopPodSandbox",
		call: func(ctx context.Context) (string, error) {
			_, err := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID})
			return "", err
		},
		then: func(string) {
			p.ready = false
			for j := range p.containers {
				p.containers[j].end()
			}
		},
	}, {
		name: "RemovePodSandbox",
		call: func(ctx context.Context) (string, error) {
			_, err := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID})
			return "", err
		},
		then: func(string) { p.clear() },
	}, {
		name: "PullImage",
		call: func(ctx context.Context) (string, error) {
			_, err := n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox}})
			return "", err
		},
		then: func(string) { *p.image = true },
	}, {
		name: "RemoveImage",
		call: func(ctx context.Context) (string, error) {
			_, err := n.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox}})
			return "", err
		},
		then: func(string) { *p.image = false },
	}}
}

func (p *modelPod) clear() {
	p.id, p.ready = "", false
	for j := range p.containers {
		p.containers[j].id = ""
	}
}

func orNone(id string) string {
	if id == "" {
		return "0000"
	}
	return id
}

func (c *modelContainer) end() {
	if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		c.state = runtimeapi.ContainerState_CONTAINER_EXITED
	}
}

// perform makes a call with one of several disturbances. A disturbed call is
// retried, as kubelet does to learn its outcome.
func (n *node) perform(t *testing.T, a action, way string, after time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	disturbed := way != ""

	switch way {
	case "cancelled":
		short, cancel := context.WithTimeout(ctx, after)
		_, _ = a.call(short) // it may finish in time
		cancel()
	case "twice":
		var wg sync.WaitGroup
		var ids [2]string
		var errs [2]error
		for i := range ids {
			wg.Go(func() { ids[i], errs[i] = a.call(ctx) })
		}
		wg.Wait()
		if !a.fails && !a.once && (errs[0] != nil || errs[1] != nil || ids[0] != ids[1]) {
			t.Errorf("%s, twice concurrently: %q, %v", a.name, ids, errs)
		}
	case "killed":
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = a.call(ctx) }) // it fails unless it finished in time
		time.Sleep(after)
		n.Kill()
		wg.Wait()
		n.begin(t)
	}

	id, err := a.call(ctx)
	switch {
	case a.fails && err == nil:
		t.Errorf("%s succeeded but the rules forbid it", a.name)
	case a.fails:
	case err == nil, a.once && disturbed: // compare checks what is listed
		a.then(id)
	default:
		t.Errorf("%s: %v", a.name, err)
	}
}

// killDuring kills the keeper during a call, whose result is open then: a start may
// have happened or not. Other pods must not be affected.
func (n *node) killDuring(t *testing.T, a action, after time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = a.call(ctx) })
	time.Sleep(after)
	killed := n.killKeeper(t)
	wg.Wait()
	n.awaitKeeper(t, killed)
}

// conflict makes two calls for the same pod concurrently. Which comes first, and
// so their results, are open; that they return is not.
func (n *node) conflict(t *testing.T, calls ...action) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, a := range calls {
		wg.Go(func() { _, _ = a.call(ctx) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		t.Errorf("%s and %s, made concurrently, hang", calls[0].name, calls[1].name)
	}
}

// retire removes a pod whose state is not known.
func (s *scene) retire(p *modelPod) {
	s.t.Helper()
	for _, listed := range s.pods() {
		if listed.Metadata.Name == p.cfg.Metadata.Name {
			call(s.t, s.n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: listed.Id})
			call(s.t, s.n.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: listed.Id})
		}
	}
	p.clear()
}

// compare checks that exactly what is in the model is listed.
func compare(s *scene, pods []*modelPod) {
	s.t.Helper()
	want := map[string]string{}
	for _, p := range pods {
		if p.id == "" {
			continue
		}
		state := runtimeapi.PodSandboxState_SANDBOX_NOTREADY

		if p.ready {
			state = runtimeapi.PodSandboxState_SANDBOX_READY
		}
		want[p.id] = state.String()

		for _, c := range p.containers {
			if c.id != "" {
				want[c.id] = c.state.String()
			}
		}
	}

	got := map[string]string{}
	for _, p := range s.pods() {
		got[p.Id] = p.State.String()
	}

	for _, c := range s.containers() {
		got[c.Id] = c.State.String()
	}
	for id := range want {
		if got[id] != want[id] {
			s.t.Errorf("%s is listed as %q, want %q", id, got[id], want[id])
		}
	}

	for id := range got {
		if want[id] == "" {
			s.t.Errorf("%s is listed as %q, want it gone", id, got[id])
		}
	}
}
