package client

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// otherPrograms returns two different binaries of the keeper.
func otherPrograms(t *testing.T) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}

	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}

	var list []string
	for i := range 2 {
		path := filepath.Join(t.TempDir(), "keeper")
		if err := os.WriteFile(path, append(data, byte(i)), 0o700); err != nil {
			t.Fatal(err)
		}
		list = append(list, path)
	}

	return list
}

// TestUpgrade has the keeper execute another program, repeatedly, with
// containers of which some exit meanwhile.
func TestUpgrade(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	programs := otherPrograms(t)
	pid := c.keeper.Process.Pid

	stop := filepath.Join(t.TempDir(), "stop")
	counting := newShell(t, "counting", "i=0; while [ ! -e "+stop+" ]; do i=$((i+1)); echo $i; done; exit 7")
	defer counting.close()
	started, err := c.Start(testContext(t), counting.req)
	if err != nil {
		t.Fatal(err)
	}
	defer started.Close()

	stdin, _ := pipe(t)
	defer stdin.Close()
	p := newProgram("make sandbox pod")
	p.Clone.Flags = unix.CLONE_NEWUTS
	p.gate()

	held, err := c.Start(testContext(t), Request{ID: "pod", Kind: Sandbox, Plan: &p.Plan, Hold: true, Keep: []Named{{"stdin", stdin}}})
	if err != nil {
		t.Fatal(err)
	}
	held.Close()

	before := awaitExitOf(t, c, "before", 3) // ends, and is not forgotten
	attached, w := pipe(t)
	defer attached.Close()
	if err := c.Attach(testContext(t), "counting", w, nil); err != nil {
		t.Fatal(err)
	}
	w.Close()

	const upgrades = 6
	codes := map[string]int{}
	for i := range upgrades {
		id := fmt.Sprintf("w%d", i)
		sh := newShell(t, id, fmt.Sprintf("sleep 0.0%d; echo done; exit %d", i, 10+i))
		sh.start(t, c)
		codes[id] = 10 + i

		replaced, err := Upgrade(testContext(t), dir, programs[i%2])
		if err != nil || !replaced {
			t.Fatalf("replaced %v, error %v", replaced, err)
		}

		if again, err := Upgrade(testContext(t), dir, programs[i%2]); err != nil || again {
			t.Errorf("the same program again: replaced %v, error %v", again, err)
		}
		<-c.Done()
		c.Close()
		if c, err = Connect(testContext(t), dir, programs[0]); err != nil {
			t.Fatal(err)
		}
	}

	defer c.Close()
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
		t.Errorf("the keeper is another process: %v", err)
	}

	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	codes["counting"] = 7

	for id, want := range codes {
		eventually(t, "the end of "+id, func() bool { return exitIn(t, c, id) != nil })
		if x := exitIn(t, c, id); x.Code != want {
			t.Errorf("%s ended with %+v, want code %d", id, x, want)
		}
	}

	if x := exitIn(t, c, "before"); x == nil || *x != before {
		t.Errorf("the earlier exit is %+v, was %+v", x, before)
	}
	checkCounted(t, counting.read(t))
	checkStillAttached(t, attached)

	list := listAll(t, c)
	for _, e := range list {
		if e.ID == "pod" && (e.Kept["stdin"] == nil || e.Namespaces["uts"] == nil) {
			t.Errorf("the sandbox has lost something: %+v", e)
		}
		forget(t, c, e.ID)
	}

	if len(list) != len(codes)+2 {
		t.Errorf("%d entries, want %d", len(list), len(codes)+2)
	}
}

// checkStillAttached expects an attached reader to get output of the last keeper.
func checkStillAttached(t *testing.T, r *os.File) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for total := 0; ; {
		n, err := r.Read(buf)
		total += n
		if err != nil { // the end of the output, not of a keeper
			if total < 1000 {
				t.Errorf("an attached reader got %d bytes", total)
			}
			return
		}
	}
}

func awaitExitOf(t *testing.T, c *Client, id string, code int) Exit {
	t.Helper()
	newShell(t, id, fmt.Sprintf("exit %d", code)).start(t, c)
	return awaitExit(t, c, id)
}

func exitIn(t *testing.T, c *Client, id string) *Exit {
	t.Helper()
	list, err := c.List(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	var x *Exit
	for i := range list {
		if list[i].ID == id {
			x = list[i].Exit
		}
		list[i].Close()
	}
	return x
}

// TestUpgradeFails offers programs that cannot continue from the state.
func TestUpgradeFails(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	defer func() { c.Close() }()

	sh := newShell(t, "web", "exec sleep 1000")
	st := sh.start(t, c)
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("no program"), 0o700); err != nil {
		t.Fatal(err)
	}

	for _, program := range []string{"/bin/false", garbage, filepath.Join(dir, "nothing")} {
		if replaced, err := Upgrade(testContext(t), dir, program); err == nil || replaced {
			t.Errorf("%s: replaced %v, error %v", program, replaced, err)
		}
	}
	c.Close()
	c = connectTest(t, dir)
	if list := listAll(t, c); len(list) != 1 || list[0].Pid != st.Pid {
		t.Errorf("listed %+v", list)
	}

	end(t, c, "web", st)
	// What it said is expected.
	if err := os.Truncate(filepath.Join(dir, logName), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
