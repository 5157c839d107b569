package client

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/rpcerr"
)

// Pod is a pod sandbox with its containers, the newest first.
type Pod struct {
	*runtimeapi.PodSandbox
	Containers []*runtimeapi.Container
}

// Name is NAMESPACE/NAME.
func (p *Pod) Name() string { return p.GetMetadata().GetNamespace() + "/" + p.GetMetadata().GetName() }

// Ready reports whether the pod's sandbox is.
func (p *Pod) Ready() bool { return p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY }

// Running counts the containers that run.
func (p *Pod) Running() (count int) {
	for _, c := range p.Containers {
		if isRunning(c) {
			count++
		}
	}
	return count
}

func isRunning(c *runtimeapi.Container) bool {
	return c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING
}

// Object is a pod, or one of its containers.
type Object struct {
	Pod       *Pod
	Container *runtimeapi.Container // nil for the pod itself
}

// Name is that of the pod, or NAMESPACE/POD/CONTAINER.
func (o Object) Name() string {
	if o.Container == nil {
		return o.Pod.Name()
	}
	return o.Pod.Name() + "/" + o.Container.GetMetadata().GetName()
}

// ID is that of the pod or container.
func (o Object) ID() string {
	if o.Container == nil {
		return o.Pod.GetId()
	}
	return o.Container.GetId()
}

// Pods is what a node has, the newest first.
type Pods []*Pod

// List lists all pods with their containers.
func (c *Client) List(ctx context.Context) (Pods, error) {
	// Containers first: a pod cannot have been removed before one of them.
	containers, err := c.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %s", rpcerr.Message(err))
	}
	sandboxes, err := c.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("list pods: %s", rpcerr.Message(err))
	}

	byID, list := map[string]*Pod{}, Pods{}
	for _, s := range sandboxes.GetItems() {
		byID[s.GetId()] = &Pod{PodSandbox: s}
		list = append(list, byID[s.GetId()])
	}
	for _, k := range containers.GetContainers() {
		if p := byID[k.GetPodSandboxId()]; p != nil {
			p.Containers = append(p.Containers, k)
		}
	}

	slices.SortStableFunc(list, func(a, b *Pod) int { return cmp.Compare(b.GetCreatedAt(), a.GetCreatedAt()) })
	for _, p := range list {
		slices.SortStableFunc(p.Containers, func(a, b *runtimeapi.Container) int { return cmp.Compare(b.GetCreatedAt(), a.GetCreatedAt()) })
	}
	return list, nil
}

// Objects are all pods, each followed by its containers.
func (l Pods) Objects() []Object {
	var all []Object
	for _, p := range l {
		all = append(all, Object{Pod: p})
		for _, c := range p.Containers {
			all = append(all, Object{p, c})
		}
	}
	return all
}

// Find returns the pod or container of a name or the beginning of an ID.
func (l Pods) Find(name string) (Object, error) {
	return l.find(name, "pod or container", func(Object) bool { return true })
}

// Pod returns the pod of a name or the beginning of an ID.
func (l Pods) Pod(name string) (*Pod, error) {
	o, err := l.find(name, "pod", func(o Object) bool { return o.Container == nil })
	return o.Pod, err
}

// Container returns the container of a name or the beginning of an ID. The name of
// a pod is that of its only container.
func (l Pods) Container(name string) (Object, error) {
	o, err := l.Find(name)
	if err != nil || o.Container != nil {
		return o, err
	}

	var of []string
	var last Object
	for _, c := range o.Pod.Containers {
		if o := (Object{o.Pod, c}); !slices.Contains(of, o.Name()) && (isRunning(c) || o.Pod.Running() == 0) {
			of = append(of, o.Name())
			last = o
		}
	}

	switch len(of) {
	case 0:
		return Object{}, fmt.Errorf("%w: pod %s has no container", ErrNotFound, o.Name())
	case 1:
		return last, nil
	}
	return Object{}, fmt.Errorf("%w: pod %s has several containers, name one: %s", ErrAmbiguous, o.Name(), strings.Join(of, ", "))
}

// find returns the object that a name fits best: its ID, its name, a part of that
// which no other has, the beginning of its ID.
func (l Pods) find(name, kind string, among func(Object) bool) (Object, error) {
	for _, fits := range []func(Object) bool{
		func(o Object) bool { return o.ID() == name },
		func(o Object) bool { return o.Name() == name },
		func(o Object) bool {
			return strings.HasSuffix(o.Name(), "/"+name) && levels(o) <= strings.Count(name, "/")+1
		},
		func(o Object) bool { return len(name) > 0 && strings.HasPrefix(o.ID(), name) },
	} {
		found := l.that(func(o Object) bool { return among(o) && fits(o) })
		switch len(found) {
		case 0:
			continue
		case 1:
			return found[0], nil
		}

		var of []string
		for _, o := range found {
			of = append(of, o.Name()+" ("+Short(o.ID())+")")
		}
		return Object{}, fmt.Errorf("%w: %s %s may be %s", ErrAmbiguous, kind, name, strings.Join(of, ", "))
	}
	return Object{}, fmt.Errorf("%w: there is no %s %s; crisp ps -a lists all", ErrNotFound, kind, name)
}

// levels is how many names an object has below its namespace.
func levels(o Object) int { return strings.Count(o.Name(), "/") }

// that returns the objects that fit, of those with the same name only the newest,
// which comes first: one that is ready or running, if there is one.
func (l Pods) that(fits func(Object) bool) []Object {
	var found []Object
	for _, o := range l.Objects() {
		if !fits(o) {
			continue
		}
		same := slices.IndexFunc(found, func(f Object) bool { return f.Name() == o.Name() })
		switch {
		case same < 0:
			found = append(found, o)
		case !found[same].alive() && o.alive():
			found[same] = o
		}
	}
	return found
}

func (o Object) alive() bool {
	if o.Container == nil {
		return o.Pod.Ready()
	}
	return isRunning(o.Container)
}

// shortID is the length of an ID in a table.
const shortID = 12

// Short is an ID as tables have it.
func Short(id string) string { return id[:min(len(id), shortID)] }
