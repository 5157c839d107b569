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
	seed    = flag.Uint64("seed", uint64(time.Now().UnixNano()), "where the random calls begin")
	forTime = flag.Duration("calls", 40*time.Second, "how long random calls are made")
	kills   = flag.Int("moments", 60, "how many kills at random moments are tried for each kind of pod")
)

// Sizes of the model.
const (
	modelPods       = 3
	modelContainers = 2 // in each pod
)

// modelPod is what a pod must be like by the rules of the CRI.
type modelPod struct {
	cfg        *runtimeapi.PodSandboxConfig
	id         string // "" for none
	ready      bool
	containers [modelContainers]modelContainer
	// image says whether the image of all containers is there; all pods share it.
	image *bool
}

type modelContainer struct {
	cfg   *runtimeapi.ContainerConfig
	id    string // "" for none
	state runtimeapi.ContainerState
}

// action is a call with what it does to the model.
type action struct {
	name string
	// call makes the call and returns an id, if that is its answer.
	call func(ctx context.Context) (string, error)
	// fails says that the model refuses it.
	fails bool
	// once says that the same again is an error after a success.
	once bool
	// then changes the model after a success.
	then func(id string)
}

// TestModel makes random calls, some of them given up, made twice at once,
// against another one, or cut short by a kill of daemon or keeper, and compares
// what is listed with a model. Sessions are open meanwhile, which must work for
// as long as nothing happens to them, and end then.
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
		if random.IntN(2) == 0 { // so that there is something to lose
			a = all[random.IntN(3)]
		}

		way := []string{"", "", "given up", "twice", "killed", "keeper killed", "against"}[random.IntN(7)]
		past = append(past, fmt.Sprintf("%s pod %d container %d %s", a.name, i, j, way))
		count[way]++
		calls++

		switch way {
		case "keeper killed":
			n.orphan(t, a, time.Duration(random.IntN(20))*time.Millisecond)
			s.retire(pods[i])
			*pods[i].image = n.has(t, busybox)
		case "against":
			b := all[random.IntN(len(all))]
			past = append(past, b.name)
			n.oppose(t, a, b)
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
		t.Logf("the calls, the last of which went wrong: %q", past[max(0, len(past)-30):])
	}
	open.closeAll()
	n.tidy(t, s)
	n.wantNoImage(t)

	survived := "yes"
	if t.Failed() {
		survived = "no"
	}

	publish(t, "random calls", fmt.Sprintf(`| calls | given up | made twice at once | against another one | with a kill of the daemon | of the keeper | sessions | survived |
| --- | --- | --- | --- | --- | --- | --- | --- |
| %d | %d | %d | %d | %d | %d | %d | %s |
`, calls, count["given up"], count["twice"], count["against"], count["killed"], count["keeper killed"], open.count, survived))
}

// wantNoImage removes the image of the containers, and wants nothing of it to
// be left.
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
	t.Errorf("left of images that were removed are %q", left)
}

// makeRun makes the calls that make a container run, if the rules let it.
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

// actions are the calls for a pod and one of its containers. Ids of what does
// not exist are made up.
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

// perform makes a call in one of several ways. One that was disturbed is made
// again, which is how kubelet learns what became of it.
func (n *node) perform(t *testing.T, a action, way string, after time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	disturbed := way != ""

	switch way {
	case "given up":
		short, cancel := context.WithTimeout(ctx, after)
		_, _ = a.call(short) // it may be in time
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
			t.Errorf("%s twice at once: %q, %v", a.name, ids, errs)
		}
	case "killed":
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = a.call(ctx) }) // it fails unless it was in time
		time.Sleep(after)
		n.Kill()
		wg.Wait()
		n.begin(t)
	}

	id, err := a.call(ctx)
	switch {
	case a.fails && err == nil:
		t.Errorf("%s succeeded against the rules", a.name)
	case a.fails:
	case err == nil, a.once && disturbed: // what is listed tells
		a.then(id)
	default:
		t.Errorf("%s: %v", a.name, err)
	}
}

// orphan kills the keeper during a call, whose answer is open then: a start may
// have got through or not. Other pods must not notice.
func (n *node) orphan(t *testing.T, a action, after time.Duration) {
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

// oppose makes two calls for the same pod at once. Which comes first, and thus
// what they answer, is open; that they answer is not.
func (n *node) oppose(t *testing.T, calls ...action) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, a := range calls {
		wg.Go(func() { _, _ = a.call(ctx) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		t.Errorf("%s and %s at once have no end", calls[0].name, calls[1].name)
	}
}

// retire removes a pod of which it is open what state it is in.
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

// compare wants exactly what the model has to be listed.
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
