package spec

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// minCPUQuota is the smallest quota in µs that the kernel accepts.
const minCPUQuota = 1000

// resources sets the cgroup limits and the OOM score.
func (b *builder) resources() error {
	r := b.Config.GetLinux().GetResources()
	limits, err := Resources(r, b.Host, b.Defaults)
	if err != nil {
		return err
	}

	b.out.Spec.Linux.Resources = limits

	score := int(r.GetOomScoreAdj())
	if score < b.Host.OOMScoreAdjMin {
		b.warn("oom_score_adj is raised to the lowest value that this daemon can set")
		score = b.Host.OOMScoreAdjMin
	}

	b.out.Spec.Process.OOMScoreAdj = &score
	return nil
}

// Resources converts a container's complete set of limits, without device
// rules. Zero in the CRI means no limit.
func Resources(r *runtimeapi.LinuxContainerResources, h Host, d Defaults) (*specs.LinuxResources, error) {
	if err := checkResources(r, h); err != nil {
		return nil, err
	}
	out := &specs.LinuxResources{CPU: cpuLimits(r), Memory: memoryLimits(r, h)}

	if d.PidsLimit > 0 {
		out.Pids = &specs.LinuxPids{Limit: &d.PidsLimit}
	}
	for _, p := range r.GetHugepageLimits() {
		if slices.Contains(h.HugePageSizes, p.GetPageSize()) {
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: p.GetPageSize(), Limit: p.GetLimit()})
		}
	}

	if len(r.GetUnified()) > 0 {
		out.Unified = maps.Clone(r.GetUnified())
	}
	return out, nil
}

// maxSet bounds the length of a list of CPUs or memory nodes.
const maxSet = 4096

// checkSet checks a list of CPUs or memory nodes, "0-3,8".
func checkSet(what, list string) error {
	if list == "" {
		return nil
	}
	if len(list) > maxSet {
		return invalid("%s of %d characters, at most %d are allowed", what, len(list), maxSet)
	}

	for _, part := range strings.Split(strings.TrimSuffix(list, "\n"), ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}

		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from > to {
			return invalid("%s %q is not a list of numbers and ranges such as 0-3,8", what, list)
		}
	}

	return nil
}

// CheckPodResources checks limits as far as that does not depend on the
// machine. The limits of a pod as a whole need no further check: kubelet sets
// them itself.
func CheckPodResources(r *runtimeapi.LinuxContainerResources) error {
	if err := checkSet("cpuset_cpus", r.GetCpusetCpus()); err != nil {
		return err
	}
	if err := checkSet("cpuset_mems", r.GetCpusetMems()); err != nil {
		return err
	}

	switch {
	case r.GetCpuShares() < 0 || r.GetCpuPeriod() < 0:
		return invalid("negative CPU shares or period")
	case r.GetCpuQuota() > 0 && r.GetCpuQuota() < minCPUQuota, r.GetCpuQuota() < -1:
		return invalid("CPU quota of %d µs", r.GetCpuQuota())
	case r.GetMemoryLimitInBytes() < -1 || r.GetMemorySwapLimitInBytes() < -1:
		return invalid("negative memory limit")
	case r.GetMemoryLimitInBytes() > 0 && r.GetMemorySwapLimitInBytes() > 0 && r.GetMemorySwapLimitInBytes() < r.GetMemoryLimitInBytes():
		return invalid("limit of memory with swap, %d, is below that of memory, %d",
			r.GetMemorySwapLimitInBytes(), r.GetMemoryLimitInBytes())
	case r.GetOomScoreAdj() < -1000 || r.GetOomScoreAdj() > 1000:
		return invalid("oom_score_adj of %d", r.GetOomScoreAdj())
	}

	return nil
}

func checkResources(r *runtimeapi.LinuxContainerResources, h Host) error {
	if err := CheckPodResources(r); err != nil {
		return err
	}
	switch {
	case len(r.GetUnified()) > 0 && !h.CgroupV2:
		return unsupported("unified cgroup settings without cgroup v2")
	}

	for _, p := range r.GetHugepageLimits() {
		// kubelet sends a zero limit for every size; only other limits matter.
		if p.GetLimit() > 0 && !slices.Contains(h.HugePageSizes, p.GetPageSize()) {
			return unsupported("limit of huge pages of %q", p.GetPageSize())
		}
	}

	for key, value := range r.GetUnified() {
		switch {
		case key == "" || !strings.Contains(key, ".") || strings.ContainsAny(key, "/\x00") || strings.Contains(key, "..") || strings.HasPrefix(key, "."):
			return invalid("unified cgroup setting %q", shorten(key))
		case strings.HasPrefix(key, "cgroup.") && !strings.HasPrefix(key, "cgroup.max."):
			// They move, stop and kill processes, also those of others.
			return invalid("unified cgroup setting %q is no limit", shorten(key))
		case strings.ContainsRune(value, 0):
			return invalid("unified cgroup setting %q: NUL byte in its value", shorten(key))
		}
	}

	return nil
}

func cpuLimits(r *runtimeapi.LinuxContainerResources) *specs.LinuxCPU {
	c := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if v := uint64(r.GetCpuShares()); v != 0 {
		c.Shares = &v
	}
	if v := r.GetCpuQuota(); v != 0 {
		c.Quota = &v
	}
	if v := uint64(r.GetCpuPeriod()); v != 0 {
		c.Period = &v
	}
	return c
}

// memoryLimits disables swap unless the configuration allows some.
func memoryLimits(r *runtimeapi.LinuxContainerResources, h Host) *specs.LinuxMemory {
	m := &specs.LinuxMemory{}
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit != 0 {
		m.Limit = &limit
	}
	if swap == 0 {
		swap = limit
	}
	if swap != 0 && h.SwapLimit {
		m.Swap = &swap
	}
	return m
}

// MergeResources returns the limits of a container after an update. Zero in the
// update means unchanged.
func MergeResources(old, update *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		out = proto.Clone(old).(*runtimeapi.LinuxContainerResources)
	}

	merge(&out.CpuPeriod, update.GetCpuPeriod())
	merge(&out.CpuQuota, update.GetCpuQuota())
	merge(&out.CpuShares, update.GetCpuShares())
	merge(&out.OomScoreAdj, update.GetOomScoreAdj())
	merge(&out.CpusetCpus, update.GetCpusetCpus())
	merge(&out.CpusetMems, update.GetCpusetMems())
	mergeMemory(out, update)

	for _, p := range update.GetHugepageLimits() {
		i := slices.IndexFunc(out.HugepageLimits, func(o *runtimeapi.HugepageLimit) bool { return o.GetPageSize() == p.GetPageSize() })
		if i < 0 {
			out.HugepageLimits = append(out.HugepageLimits, nil)
			i = len(out.HugepageLimits) - 1
		}
		out.HugepageLimits[i] = proto.Clone(p).(*runtimeapi.HugepageLimit)
	}

	if len(update.GetUnified()) > 0 && out.Unified == nil {
		out.Unified = map[string]string{}
	}
	maps.Copy(out.Unified, update.GetUnified())
	return out
}

func merge[T comparable](to *T, v T) {
	var zero T
	if v != zero {
		*to = v
	}
}

// mergeMemory keeps a container's allowance of swap, which may be none, when
// only its memory limit changes.
func mergeMemory(out, update *runtimeapi.LinuxContainerResources) {
	limit, swap := out.GetMemoryLimitInBytes(), out.GetMemorySwapLimitInBytes()
	granted := int64(0)
	if swap > limit && limit > 0 {
		granted = swap - limit
	}

	merge(&out.MemoryLimitInBytes, update.GetMemoryLimitInBytes())
	switch {
	case update.GetMemorySwapLimitInBytes() != 0:
		out.MemorySwapLimitInBytes = update.GetMemorySwapLimitInBytes()
	case update.GetMemoryLimitInBytes() != 0 && swap > 0:
		switch limit := out.MemoryLimitInBytes; {
		case limit < 0: // swap cannot be limited while memory is not
			out.MemorySwapLimitInBytes = -1
		case limit > math.MaxInt64-granted:
			out.MemorySwapLimitInBytes = math.MaxInt64
		default:
			out.MemorySwapLimitInBytes = limit + granted
		}
	}
}
