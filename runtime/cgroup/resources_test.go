package cgroup

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestCPUSharesToWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 0, 1: 1, 2: 1, 102: 17, 512: 59, 1024: 100, 2048: 174, 262144: 10000, 1 << 40: 10000} {
		if got := CPUSharesToWeight(shares); got != want {
			t.Errorf("%d shares are weight %d, want %d", shares, got, want)
		}
	}
}

func TestConvert(t *testing.T) {
	v2 := &Node{v2: true, swap: true, pageSizes: []string{"2MB", "1GB"}}
	got, err := v2.convert(&specs.LinuxResources{
		CPU: &specs.LinuxCPU{
			Shares: ptr(uint64(1 << 30)), Quota: ptr(int64(-1)), Period: ptr(uint64(1000)), Burst: ptr(uint64(5)),
			RealtimePeriod: ptr(uint64(6)), RealtimeRuntime: ptr(int64(7)), Cpus: "0-1", Mems: "0", Idle: ptr(int64(1)),
		},
		Memory: &specs.LinuxMemory{
			Limit: ptr(int64(100)), Swap: ptr(int64(150)), Reservation: ptr(int64(50)), Swappiness: ptr(uint64(3)),
			CheckBeforeUpdate: ptr(true), DisableOOMKiller: ptr(true),
		},
		Pids: &specs.LinuxPids{Limit: ptr(int64(9))},
		BlockIO: &specs.LinuxBlockIO{
			Weight: ptr(uint16(10)), LeafWeight: ptr(uint16(11)),
			ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8, Minor: 1}, Rate: 12}},
		},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}, {Pagesize: "64KB"}, {Pagesize: "2MB", Limit: 4 << 20}},
		Unified:        map[string]string{"memory.high": "70", "memory.oom.group": "1"},
		Devices:        []specs.LinuxDeviceCgroup{{Type: "a", Allow: true}},
	})
	if err != nil {
		t.Fatal(err)
	}

	if len(got.Devices) != 1 || !got.Devices[0].Allow {
		t.Errorf("device rules are %+v", got.Devices)
	}
	got.Devices = nil

	want := &cgroups.Resources{
		CpuShares: 262144, CpuWeight: 10000, CpuQuota: -1, CpuPeriod: 1000, CpuBurst: ptr(uint64(5)), CpuRtPeriod: 6, CpuRtRuntime: 7,
		CpusetCpus: "0-1", CpusetMems: "0", CPUIdle: ptr(int64(1)),
		Memory: 100, MemorySwap: 150, MemoryReservation: 50, MemorySwappiness: ptr(uint64(3)), MemoryCheckBeforeUpdate: true, OomKillDisable: true,
		PidsLimit: ptr(int64(9)), BlkioWeight: 10, BlkioLeafWeight: 11,
		BlkioThrottleReadBpsDevice: []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 1, 12)},
		HugetlbLimit:               []*cgroups.HugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}},
		Unified:                    map[string]string{"memory.high": "70", "memory.oom.group": "1"},
	}

	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestConvertSwap(t *testing.T) {
	for _, c := range []struct {
		accounted         bool
		limit, swap, want int64
		refused           bool
	}{
		{true, 100, 0, 100, false},   // no swap limit: no swap
		{true, 100, 100, 100, false}, // none
		{true, 100, 130, 130, false},
		{true, 100, -1, -1, false},
		{true, 100, 50, 0, true},
		{true, 0, 0, 0, false},
		{false, 100, 0, 0, false},
		{false, 100, 130, 0, false},
	} {
		n := &Node{v2: true, swap: c.accounted}
		got, err := n.convert(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &c.limit, Swap: &c.swap}})

		if c.refused {
			if !errors.Is(err, ErrResources) {
				t.Errorf("limit %d swap %d: got %v, want %v", c.limit, c.swap, err, ErrResources)
			}
			continue
		}

		if err != nil || got.MemorySwap != c.want {
			t.Errorf("limit %d swap %d accounted %v: got %d, %v, want %d", c.limit, c.swap, c.accounted, got.MemorySwap, err, c.want)
		}
	}
}

func TestConvertRefuses(t *testing.T) {
	v2 := &Node{v2: true, swap: true, pageSizes: []string{"2MB"}}
	for _, c := range []struct {
		r    specs.LinuxResources
		want error
	}{
		{specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 1}}}, ErrUnsupported},
		{specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Type: "p"}}}, ErrResources},
		{specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Type: "c", Access: "rx"}}}, ErrResources},
		{specs.LinuxResources{Unified: map[string]string{"memory": "1"}}, ErrResources},
		{specs.LinuxResources{Unified: map[string]string{"../memory.max": "1"}}, ErrResources},
		{specs.LinuxResources{Unified: map[string]string{"x/memory.max": "1"}}, ErrResources},
		{specs.LinuxResources{Unified: map[string]string{"memory..max": "1"}}, ErrResources},
		{specs.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}}, ErrResources},
		{specs.LinuxResources{Unified: map[string]string{"cgroup.kill": "1"}}, ErrResources},
	} {
		if _, err := v2.convert(&c.r); !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.r, err, c.want)
		}
	}

	// Without the controller limits are left out, as the warning at start says.
	none := &Node{v2: true}
	got, err := none.convert(&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}})
	if err != nil || len(got.HugetlbLimit) != 0 {
		t.Errorf("no hugetlb controller: got %v, %v", got.HugetlbLimit, err)
	}
}

func TestConvertDevices(t *testing.T) {
	for _, c := range []struct {
		in   []specs.LinuxDeviceCgroup
		want string
		list bool
	}{
		{nil, "-a *:* rwm", true},
		{[]specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "wr"}}, "-a *:* rwm, +c 1:3 rw", true},
		{[]specs.LinuxDeviceCgroup{{Allow: true, Type: "u", Major: ptr(int64(5))}}, "-a *:* rwm, +c 5:* rwm", true},
		{[]specs.LinuxDeviceCgroup{{Type: "a", Allow: true}}, "+a *:* rwm", false},
		{[]specs.LinuxDeviceCgroup{{}, {Type: "b", Allow: true}, {Type: "b", Major: ptr(int64(8)), Minor: ptr(int64(0))}}, "-a *:* rwm, +b *:* rwm, -b 8:0 rwm", false},
	} {
		rules, err := convertDevices(c.in)
		if err != nil {
			t.Fatal(err)
		}

		var got []string
		for _, r := range rules {
			sign := "-"
			if r.Allow {
				sign = "+"
			}
			got = append(got, sign+r.CgroupString())
		}

		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("got %s, want %s", s, c.want)
		}
		if _, list := allowList(rules); list != c.list {
			t.Errorf("%s: plain allow list: %v, want %v", c.want, list, c.list)
		}
	}
}
