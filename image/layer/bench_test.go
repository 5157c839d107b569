package layer

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// BenchmarkUnpack unpacks layers that are in memory, half of them random, and
// tells the processor time that it takes. CRISP_BENCH_ROOT says on which disk.
func BenchmarkUnpack(b *testing.B) {
	testkit.Root(b)
	for _, kind := range []struct {
		name        string
		files, size int
	}{{"small", 20000, 2 << 10}, {"big", 2, 64 << 20}} {
		var entries []entry
		random := rand.NewChaCha8([32]byte{1})
		content := make([]byte, kind.size)
		for i := range kind.files {
			for at := 0; at < len(content); at += 1024 {
				_, _ = random.Read(content[at:min(at+512, len(content))]) // never fails
			}
			if i%100 == 0 {
				entries = append(entries, directory(fmt.Sprintf("layer/dir%d", i/100), 0o755))
			}
			entries = append(entries, reg(fmt.Sprintf("layer/dir%d/file%d", i/100, i), string(content)))
		}

		data := archive(b, entries...)
		for _, how := range []string{"gzip", "zstd"} {
			packed := compressed(b, data, how)
			b.Run(kind.name+"/"+how, func(b *testing.B) { benchmarkUnpack(b, packed, digest.FromBytes(data), int64(len(data))) })
		}
	}
}

func benchmarkUnpack(b *testing.B, packed []byte, diff digest.Digest, size int64) {
	base, err := os.MkdirTemp(os.Getenv("CRISP_BENCH_ROOT"), "unpack-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(base) })
	if err := os.Mkdir(filepath.Join(base, "tmp"), 0o700); err != nil {
		b.Fatal(err)
	}

	s, err := Open(filepath.Join(base, "layers"), filepath.Join(base, "tmp"), testBoot)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()

	b.SetBytes(size)
	var user, system int64
	for b.Loop() {
		var before, after unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
		st, err := s.Stage(diff, diff, "")
		if err == nil {
			err = st.Unpack(b.Context(), source(packed), Limits{Bytes: 1 << 40})
		}
		if err != nil {
			b.Fatal(err)
		}

		_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
		user += after.Utime.Nano() - before.Utime.Nano()
		system += after.Stime.Nano() - before.Stime.Nano()
		b.StopTimer()
		os.RemoveAll(filepath.Join(base, "tmp", st.Discard()))
		b.StartTimer()
	}

	b.ReportMetric(float64(user)/1e6/float64(b.N), "user-ms/op")
	b.ReportMetric(float64(system)/1e6/float64(b.N), "sys-ms/op")
}
