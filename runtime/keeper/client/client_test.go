package client

import (
	"os"
	"regexp"
	"testing"

	"crisp/test/testkit"
)

func TestContainerRunsAndLogs(t *testing.T) {
	testkit.Root(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()
	sh := newShell(t, "web", "echo hello; echo oops >&2; printf rest; exit 7")
	st := sh.start(t, c)
	x := awaitExit(t, c, "web")
	if x.Code != 7 || x.Signal != 0 || x.Pid != st.Pid || x.Kind != Container {
		t.Errorf("exit = %+v, want code 7 of pid %d", x, st.Pid)
	}
	log, err := os.ReadFile(sh.log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`stdout F hello\n`, `stderr F oops\n`, `stdout P rest\n`} {
		if !regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ` + want).Match(log) {
			t.Errorf("log lacks %q:\n%s", want, log)
		}
	}
	if err := c.Forget(testContext(t), "web"); err != nil {
		t.Error(err)
	}
}
