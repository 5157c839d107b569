package launch

import (
	"slices"
	"testing"
	"time"

	"crisp/runtime/plan"
)

// BenchmarkStart measures a container's start, from the call to execve, and
// tells the median.
func BenchmarkStart(b *testing.B) {
	lab := newLab(b)
	lab.sandbox(usual())
	s := lab.spec("true")
	s.Process.Args = []string{"/bin/busybox", "true"}
	var times []time.Duration
	for b.Loop() {
		b.StopTimer()
		root := lab.rootfs(nil)
		b.StartTimer()
		begin := time.Now()
		c, err := lab.start(s, Held{"rootfs": root}, plan.Options{})
		times = append(times, time.Since(begin))
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if out, code := c.wait(); code != 0 {
			b.Fatal(out)
		}
		c.kill()
		root.Close()
		b.StartTimer()
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
}
