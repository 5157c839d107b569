package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cri/admin"
	"crisp/cri/client"
	"crisp/cri/pod"
	"crisp/image"
)

// whyCommand is the command why.
func whyCommand() *cobra.Command {
	return listing(&cobra.Command{
		Use: "why [FLAGS] POD|CONTAINER", Short: "Say why a pod or container is as it is",
		Long: `Say why a pod or container is as it is: what is done to it, since when, and what
that waits for; what failed last, at which step; how its containers ended, in
words; what happened last; and what to do. Pods whose creation failed have no
record, they are named NAMESPACE/NAME.`,
		Args: cli.Exactly(1, "one pod or container"),
	}, func(ctx context.Context, s *session, f format, args []string) error {
		report, container, err := s.report(ctx, args[0])
		if err != nil {
			return err
		}
		if !f.isTable() {
			return f.print(s.out, report, nil)
		}
		return explain(report, container, time.Now()).print(s.out, colorsFor(s.out))
	})
}

// report is the daemon's about the pod of a name, with the name of the container if
// that is one's.
func (s *session) report(ctx context.Context, name string) (r admin.Report, container string, err error) {
	pods, err := s.List(ctx)
	if err != nil {
		return r, "", err
	}
	query := url.Values{}
	o, err := pods.Find(name)
	switch {
	case err == nil:
		query.Set("id", o.Pod.GetId())
		query.Set("name", o.Pod.Name())
		if o.Container != nil {
			container = o.Container.GetId()
		}
	case errors.Is(err, client.ErrNotFound):
		known, e := s.remembered(ctx, name)
		if e != nil {
			return r, "", e
		}
		if known == "" {
			return r, "", err
		}
		query.Set("name", known)
	default:
		return r, "", err
	}

	err = s.ask(ctx, admin.ReportPath+"?"+query.Encode(), &r)
	return r, container, err
}

// remembered is the full name of a pod that has no record, but an operation or a
// past; "" if there is none.
func (s *session) remembered(ctx context.Context, name string) (string, error) {
	var state admin.State
	if err := s.ask(ctx, admin.StatePath, &state); err != nil {
		return "", err
	}
	var names []string
	for _, op := range state.Operations {
		names = append(names, op.Pod)
	}
	for _, e := range state.History {
		names = append(names, e.Pod)
	}

	for _, full := range names {
		if full == name || strings.HasSuffix(full, "/"+name) || strings.HasPrefix(name, full+"/") {
			return full, nil
		}
	}
	return "", nil
}

// paragraph is a text with a style for its first word.
type paragraph struct {
	mark  string
	style style
	text  string
	more  []string // lines below it
	todo  string
}

// explanation is what a report says to people.
type explanation struct {
	head   string
	paras  []paragraph
	events []pod.Event
}

// explain puts a report into words, about one container if that is not empty.
func explain(r admin.Report, container string, now time.Time) explanation {
	var e explanation
	if p := r.Pod; p != nil {
		state := "ready"
		if !p.Ready {
			state = "not ready (" + cmp.Or(p.Reason, p.Phase) + ")"
		}
		e.head = fmt.Sprintf("pod %s, %s, created %s ago, %s", p.Name, client.Short(p.ID), duration(now.Sub(p.CreatedAt)), state)
	} else {
		e.head = "there is no pod of that name now"
	}

	for _, op := range r.Operations {
		if container == "" || op.ContainerID == "" || op.ContainerID == container {
			e.paras = append(e.paras, underWay(op, now))
		}
	}
	var last *pod.Event
	for _, past := range r.History {
		if container != "" && past.ContainerID != "" && past.ContainerID != container {
			continue
		}
		e.events = append(e.events, past)
		if past.Error != "" {
			last = &past
		}
	}
	failed := last != nil && !overcome(r, *last)
	if failed {
		e.paras = append(e.paras, failure(*last, now))
	}

	if r.Keeper != "" {
		e.paras = append(e.paras, paragraph{mark: "keeper", style: bad, text: r.Keeper, todo: keeperTodo})
	}
	if r.Network != "" {
		e.paras = append(e.paras, paragraph{mark: "network", style: bad, text: r.Network, todo: "no pod with a network of its own can start before; crisp doctor looks at configuration and plugins"})
	}
	if r.Pod != nil {
		for _, c := range r.Pod.Containers {
			if container == "" || c.ID == container {
				e.paras = append(e.paras, fate(c, starting(r, c.ID), now))
			}
		}
		if len(r.Pod.Containers) == 0 && r.Pod.Ready && (!failed || len(r.Pulls) > 0) {
			e.paras = append(e.paras, paragraph{mark: "containers", style: doubt, text: "nobody has asked for a container in this pod yet", todo: pullsText(r, now)})
		}
	}
	return e
}

// pullsText says which images are being pulled: kubelet creates a container after
// that.
func pullsText(r admin.Report, now time.Time) string {
	var list []string
	for _, p := range r.Pulls {
		list = append(list, fmt.Sprintf("%s (%s of %s, for %s%s)", p.Ref, bytesOf(uint64(p.Bytes)), bytesOf(uint64(p.Size)), duration(now.Sub(p.Began)), hop(p, now)))
	}
	if len(list) == 0 {
		return "kubelet may wait for volumes, secrets or an image pull that failed: kubectl describe pod, and kubelet's log"
	}
	return "images are being pulled: " + strings.Join(list, ", ")
}

// hop says which host of a registry a pull is at.
func hop(p image.Progress, now time.Time) string {
	text := ""
	switch {
	case len(p.Asked) > 0:
		text = fmt.Sprintf("; %s was asked %s ago, and has not answered", p.Asked[0].Host, duration(now.Sub(p.Asked[0].Since)))
	case p.Host != "":
		text = "; from " + p.Host
	}
	if p.Failed != "" {
		text += "; given up: " + p.Failed
	}
	return text
}

// overcome reports whether what failed succeeded later, as a container started or a
// pod got ready, or is said of its container anyway.
func overcome(r admin.Report, failed pod.Event) bool {
	for _, later := range r.History {
		if !later.Time.After(failed.Time) {
			continue
		}
		if failed.Image != "" {
			if later.Image == failed.Image && later.Error == "" {
				return true
			}
		} else if later.What == "started" && later.Container == failed.Container {
			return true
		}
	}
	if r.Pod == nil {
		return false
	}
	return slices.ContainsFunc(r.Pod.Containers, func(c admin.Container) bool { return c.ID == failed.ContainerID && c.Reason == startError })
}

// underWay describes an operation under way.
func underWay(op admin.Waiting, now time.Time) paragraph {
	p := paragraph{mark: "under way", style: doubt, text: fmt.Sprintf("%s, for %s", subject(op.What, op.Container), duration(now.Sub(op.Began)))}
	if op.Stage != "" {
		stage := op.Stage
		if op.Undo {
			stage = "undo " + stage
		}
		p.text += fmt.Sprintf("; for %s: %s", duration(now.Sub(op.StageBegan)), stage)
	}

	if h := op.Hook; h != nil {
		p.more = append(p.more, fmt.Sprintf("%s runs for %s, and is killed after %v%s", h.Hook, duration(now.Sub(h.Began)), h.Limit, printed(h.Output)))
	}
	for _, proc := range op.Processes {
		kind := "process"
		if proc.Verb != "" {
			kind = "network plugin (" + proc.Verb + "), process"
		}
		p.more = append(p.more, fmt.Sprintf("%s %d: %s: %s", kind, proc.PID, proc.Command, proc.State))
		if len(proc.Stack) > 0 {
			p.more = append(p.more, "  in the kernel: "+strings.Join(proc.Stack, " < "))
		}
	}
	for _, plugin := range op.Plugins {
		p.more = append(p.more, fmt.Sprintf("network plugin %s (%s) runs for %s%s", plugin.Plugin, plugin.Command, duration(now.Sub(plugin.Began)), printed(plugin.Stderr, plugin.Stdout)))
	}
	if now.Sub(cmp.Or(op.StageBegan, op.Began)) > slow {
		p.todo = advice(op.Stage, "")
		if op.Hook != nil {
			p.todo = "see what the hook's program waits for, or remove its definition"
		}
	}
	return p
}

// printed is what a program has printed so far.
func printed(outputs ...string) string {
	var list []string
	for _, o := range outputs {
		if o = strings.TrimSpace(o); o != "" {
			list = append(list, o)
		}
	}
	if len(list) == 0 {
		return ", and has printed nothing"
	}
	return ", and has printed: " + strings.ReplaceAll(strings.Join(list, "\n"), "\n", " / ")
}

// starting reports whether the start of a container is under way.
func starting(r admin.Report, id string) bool {
	return slices.ContainsFunc(r.Operations, func(op admin.Waiting) bool { return op.ContainerID == id && op.What == "start container" })
}

// keeperTodo is what to do about a keeper that is not there, or silent.
const keeperTodo = "see the daemon's log and systemctl status crisp-keeper; one that is stopped goes on by kill -CONT, " +
	"and one that hangs may be killed: containers outlive it, and the daemon starts another"

// slow is how long a stage may take before there is advice.
const slow = 5 * time.Second

// subject is an operation with the container that it is about.
func subject(what, container string) string {
	if container == "" {
		return what
	}
	before, after, _ := strings.Cut(what, " container")
	return before + " container " + container + after
}

// happened is what an event says, with the container or image that it is about.
func happened(e pod.Event) string {
	if e.Image == "" {
		return subject(e.What, e.Container)
	}
	before, after, _ := strings.Cut(e.What, "image")
	return before + "image " + e.Image + after
}

// failure describes an operation that failed.
func failure(e pod.Event, now time.Time) paragraph {
	text := fmt.Sprintf("%s %s ago", happened(e), duration(now.Sub(e.Time)))
	if e.Stage != "" {
		text += fmt.Sprintf(" at %q", e.Stage)
	}
	return paragraph{mark: "failed", style: bad, text: text + ": " + e.Error, todo: advice(e.Stage, e.Error)}
}

// print prints the explanation.
func (e explanation) print(out io.Writer, colors bool) error {
	var b strings.Builder
	mark := func(s style, text string) string {
		if colors {
			return s.in(text)
		}
		return text
	}

	fmt.Fprintln(&b, mark(strong, oneLine(e.head)))
	for _, p := range e.paras {
		fmt.Fprintf(&b, "%s: %s\n", mark(p.style, oneLine(p.mark)), clean(p.text))
		for _, line := range p.more {
			fmt.Fprintf(&b, "    %s\n", clean(line))
		}
		if p.todo != "" {
			fmt.Fprintf(&b, "    what to do: %s\n", clean(p.todo))
		}
	}

	if len(e.events) > 0 {
		fmt.Fprintln(&b, mark(strong, "what happened last:"))
	}
	for _, past := range e.events[max(0, len(e.events)-maxShown):] {
		what := happened(past)
		switch {
		case past.Error != "" || past.Image != "":
		case past.Container != "":
			what = "container " + past.Container + " " + past.What
		case past.ContainerID != "":
			what = "container " + client.Short(past.ContainerID) + " " + past.What
		default:
			what = "pod " + past.What
		}
		fmt.Fprintf(&b, "    %s  %s\n", past.Time.Local().Format(time.TimeOnly), oneLine(what))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// maxShown is how many events are printed.
const maxShown = 12
