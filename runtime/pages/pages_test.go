package pages

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Programs that the test binary plays, by its first argument.
const (
	reader = "read-pages"
	holder = "hold-pages"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == reader {
		if err := Main(os.Args[2:], os.Stdout); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == holder {
		if err := playHolder(os.Args[2]); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// playHolder has memory with the content of a file in several kinds of mappings, says so
// on standard output, and ends with standard input.
func playHolder(file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	memfd, err := unix.MemfdCreate("of the test", 0)
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(memfd, int64(len(content)/3)); err != nil {
		return err
	}

	for i, how := range []struct{ fd, flags int }{{-1, unix.MAP_PRIVATE | unix.MAP_ANON}, {-1, unix.MAP_SHARED | unix.MAP_ANON}, {memfd, unix.MAP_SHARED}} {
		part := content[i*len(content)/3:][:len(content)/3]
		mapped, err := unix.Mmap(how.fd, 0, len(part), unix.PROT_READ|unix.PROT_WRITE, how.flags)
		if err != nil {
			return err
		}
		copy(mapped, part)
	}
	// A terabyte of addresses with a single page.
	reserved, err := unix.Mmap(-1, 0, 1<<40, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	reserved[1<<39] = 1
	_, err = os.Stdout.WriteString("ready\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return err
}

// group is a list of processes, which changes with each look.
type group [][]int

func (g *group) Pids() ([]int, error) {
	now := (*g)[0]
	if len(*g) > 1 {
		*g = (*g)[1:]
	}
	return now, nil
}

func command(t *testing.T) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{self, reader}
}

// startHolder is a process that holds these pages.
func startHolder(t *testing.T, content []byte) *exec.Cmd {
	t.Helper()
	file := t.TempDir() + "/content"
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}

	cmd := exec.Command(command(t)[0], holder, file)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	if n, err := out.Read(make([]byte, 10)); err != nil || n != 6 {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	return cmd
}

// TestApart reads all pages of a process, in whatever mapping they are.
func TestApart(t *testing.T) {
	content := make([]byte, 3*100*Size)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	pid := startHolder(t, content).Process.Pid

	found, all := map[string]bool{}, 0
	began := time.Now()
	err := Apart(t.Context(), command(t), []Lister{&group{{pid}}}, func(block []byte) error {
		found[string(block)] = true
		all++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(content); i += Size {
		if !found[string(content[i:i+Size])] {
			t.Fatalf("page %d of %d was not read", i/Size, len(content)/Size)
		}
	}
	if took := time.Since(began); all > 50_000 || took > 20*time.Second {
		t.Errorf("read %d blocks in %v", all, took)
	}
}

// TestApartLeavesOut has processes that are not of the group, or no more.
func TestApartLeavesOut(t *testing.T) {
	content := bytes.Repeat([]byte("secret.."), 3*Size/8)
	cmd := startHolder(t, content)
	pid := cmd.Process.Pid
	for name, g := range map[string]*group{
		"left the group meanwhile": {{pid}, {}},
		"no process":               {{1 << 22}},
		"nothing":                  {{}},
	} {
		err := Apart(t.Context(), command(t), []Lister{g}, func([]byte) error { t.Errorf("%s: a block was read", name); return io.EOF })
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	// One that ended, and whose PID may be another's.
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	var to bytes.Buffer
	if err := write(&to, []int{os.Getpid()}, []int{fd}); err != nil || to.Len() > 0 {
		t.Errorf("read %d bytes of a process that has ended, %v", to.Len(), err)
	}
}

// TestApartEnds has its user fail, its time be up, and the process that reads.
func TestApartEnds(t *testing.T) {
	me := []Lister{&group{{startHolder(t, make([]byte, 3*Size)).Process.Pid}}}
	why := errors.New("enough")
	if err := Apart(t.Context(), command(t), me, func([]byte) error { return why }); !errors.Is(err, why) {
		t.Errorf("a user that fails: %v", err)
	}

	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, why)
	defer cancel()
	began := time.Now()
	err := Apart(ctx, []string{"/bin/sleep", "60"}, nil, func([]byte) error { return nil })
	if took := time.Since(began); !errors.Is(err, why) || took > 10*time.Second {
		t.Errorf("one that never ends: %v after %v", err, took)
	}

	err = Apart(t.Context(), append(command(t), "no PID"), nil, func([]byte) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "no PID") {
		t.Errorf("one that fails: %v", err)
	}
}

func TestParse(t *testing.T) {
	list, err := parse(strings.NewReader(`55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 r--p 00000000 fe:01 1234                       /usr/lib/libc.so.6
7f0000002000-7f0000003000 ---p 00000000 00:00 0 
7f0000004000-7f0000005000 rw-s 00000000 00:05 7                          /dev/dri/card0
7f0000006000-7f0000007000 rw-s 00000000 00:01 8                          /memfd:a b\012c (deleted)
7f0000008000-7f0000009000 rw-s 00000000 00:01 9                          /dev/zero (deleted)
100000000000-200000000000 rw-p 00000000 00:00 0 
ffffffffff600000-ffffffffff601000 r-xp 00000000 00:00 0                  [vsyscall]
`))

	want := []mapping{
		{0x55d0c0000000, 0x55d0c0021000, false}, {0x7f0000000000, 0x7f0000001000, false},
		{0x7f0000006000, 0x7f0000007000, true}, {0x7f0000008000, 0x7f0000009000, true},
	}
	if err != nil || len(list) != len(want) {
		t.Fatalf("%+v, %v", list, err)
	}
	for i := range want {
		if list[i] != want[i] {
			t.Errorf("%+v, want %+v", list[i], want[i])
		}
	}
	if _, err := parse(strings.NewReader("x-y rw-p 0 00:00 0\n")); err == nil {
		t.Error("no error")
	}
}
