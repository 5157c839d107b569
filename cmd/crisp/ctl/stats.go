package ctl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/client"
	"crisp/cri/rpcerr"
)

// rateTime is how long after a first look at CPU times there is a rate.
const rateTime = time.Second

// Usage is what a container uses, in the output of crisp stats and crisp top.
type Usage struct {
	Container string `json:"container"`
	ID        string `json:"id"`
	// CPU is in cores; null if it is not known yet.
	CPU           *float64 `json:"cpu"`
	CPUSeconds    float64  `json:"cpuSeconds"`
	Memory        uint64   `json:"memoryBytes"`
	Swap          uint64   `json:"swapBytes"`
	Disk          uint64   `json:"diskBytes"`
	DiskInodes    uint64   `json:"diskInodes"`
	MemoryFaults  uint64   `json:"majorPageFaults"`
	MemoryRSS     uint64   `json:"rssBytes"`
	MemoryMaximum uint64   `json:"memoryAvailableBytes"`
}

// statsCommand is the command stats.
func statsCommand() *cobra.Command {
	return listing(&cobra.Command{
		Use: "stats [FLAGS] [POD|CONTAINER]", Short: "Show what containers use",
		Args: cli.UpTo(1, "one pod or container"),
	}, func(ctx context.Context, s *session, f format, args []string) error {
		list, _, err := s.usage(ctx, args)
		if err != nil {
			return err
		}
		return f.print(s.out, list, func() *table { return usageTable(list, f.wide()) })
	})
}

// topCommand is the command top.
func topCommand() *cobra.Command {
	once, interval := false, time.Duration(0)
	cmd := withDaemon(&cobra.Command{
		Use: "top [--once] [FLAGS] [POD|CONTAINER]", Short: "Show what containers use, the busiest first, again and again",
		Long: `Show what containers use, the busiest first, again and again until it is
interrupted. On anything but a terminal, and with --once, it is shown once.`,
		Args: cli.UpTo(1, "one pod or container"),
	}, func(ctx context.Context, s *session, args []string) error {
		fd, moves := terminal(s.out)
		for {
			text, err := s.top(ctx, args, moves)
			if err != nil {
				return unlessInterrupted(ctx, err)
			}
			if once || !moves {
				_, err := io.WriteString(s.out, text)
				return err
			}

			if _, height, err := term.GetSize(fd); err == nil && height > 1 {
				lines := strings.SplitAfter(text, "\n")
				text = strings.TrimSuffix(strings.Join(lines[:min(len(lines), height)], ""), "\n")
			}
			if _, err := io.WriteString(s.out, "\x1b[H\x1b[2J"+text); err != nil {
				return err
			}
			select {
			case <-time.After(interval):
			case <-ctx.Done():
				_, err := fmt.Fprintln(s.out)
				return err
			}
		}
	})
	cmd.Flags().BoolVar(&once, "once", false, "show it once")
	cmd.Flags().DurationVarP(&interval, "interval", "d", 2*time.Second, "`DURATION` between two looks")
	return cmd
}

// unlessInterrupted is an error, unless it comes from the user's interrupt.
func unlessInterrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// top is the text of one look.
func (s *session) top(ctx context.Context, args []string, colors bool) (string, error) {
	list, pods, err := s.usage(ctx, args)
	if err != nil {
		return "", err
	}

	cores := func(u Usage) float64 {
		if u.CPU == nil {
			return 0
		}
		return *u.CPU
	}
	slices.SortStableFunc(list, func(a, b Usage) int {
		return cmp.Or(cmp.Compare(cores(b), cores(a)), cmp.Compare(b.Memory, a.Memory))
	})

	ready, running, cpu, memory := 0, 0, 0.0, uint64(0)
	for _, p := range pods {
		running += p.Running()
		if p.Ready() {
			ready++
		}
	}
	for _, u := range list {
		cpu += cores(u)
		memory += u.Memory
	}
	head := fmt.Sprintf("crisp %s  pods: %d, %d ready  containers: %d running  CPU: %.2f cores  memory: %s\n\n",
		s.Version, len(pods), ready, running, cpu, bytesOf(memory))
	return head + usageTable(list, false).text(colors), nil
}

// usage is what the containers of a pod, one container, or all use.
func (s *session) usage(ctx context.Context, args []string) ([]Usage, client.Pods, error) {
	pods, err := s.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	filter := &runtimeapi.ContainerStatsFilter{}
	if len(args) > 0 {
		o, err := pods.Find(args[0])
		if err != nil {
			return nil, nil, err
		}
		if filter.PodSandboxId = o.ID(); o.Container != nil {
			filter = &runtimeapi.ContainerStatsFilter{Id: o.ID()}
		}
	}

	list, known, err := s.readUsage(ctx, filter, pods)
	if err != nil || known {
		return list, pods, err
	}
	select {
	case <-time.After(rateTime):
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	list, _, err = s.readUsage(ctx, filter, pods)
	return list, pods, err
}

// readUsage asks the daemon once; known means that the rates are.
func (s *session) readUsage(ctx context.Context, filter *runtimeapi.ContainerStatsFilter, pods client.Pods) (list []Usage, known bool, err error) {
	r, err := s.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: filter})
	if err != nil {
		return nil, false, fmt.Errorf("read stats: %s", rpcerr.Message(err))
	}
	names := map[string]string{}
	for _, o := range pods.Objects() {
		names[o.ID()] = o.Name()
	}

	list, known = []Usage{}, true
	for _, st := range r.GetStats() {
		id := st.GetAttributes().GetId()
		u := Usage{
			Container: cmp.Or(names[id], st.GetAttributes().GetMetadata().GetName()), ID: id,
			CPUSeconds: float64(st.GetCpu().GetUsageCoreNanoSeconds().GetValue()) / 1e9,
			Memory:     st.GetMemory().GetWorkingSetBytes().GetValue(), MemoryRSS: st.GetMemory().GetRssBytes().GetValue(),
			MemoryFaults: st.GetMemory().GetMajorPageFaults().GetValue(), MemoryMaximum: st.GetMemory().GetAvailableBytes().GetValue(),
			Swap: st.GetSwap().GetSwapUsageBytes().GetValue(),
			Disk: st.GetWritableLayer().GetUsedBytes().GetValue(), DiskInodes: st.GetWritableLayer().GetInodesUsed().GetValue(),
		}
		if rate := st.GetCpu().GetUsageNanoCores(); rate != nil {
			cores := float64(rate.GetValue()) / 1e9
			u.CPU = &cores
		} else {
			known = false
		}
		list = append(list, u)
	}
	slices.SortFunc(list, func(a, b Usage) int { return strings.Compare(a.Container, b.Container) })
	return list, known, nil
}

func usageTable(list []Usage, wide bool) *table {
	columns := []string{"CONTAINER", "CPU", "MEMORY", "DISK", "ID"}
	if wide {
		columns = append(columns, "CPU TIME", "RSS", "SWAP", "INODES")
	}
	t := newTable(columns...)
	for _, u := range list {
		cpu := ""
		if u.CPU != nil {
			cpu = fmt.Sprintf("%.1f%%", *u.CPU*100)
		}
		row := []string{u.Container, cpu, bytesOf(u.Memory), bytesOf(u.Disk), client.Short(u.ID)}
		if wide {
			row = append(row, fmt.Sprintf("%.1fs", u.CPUSeconds), bytesOf(u.MemoryRSS), bytesOf(u.Swap), fmt.Sprint(u.DiskInodes))
		}
		t.add(row...)
	}
	return t
}
