package launch

import (
	"testing"
)

func TestContainerRuns(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	b.want(b.spec("echo hello; hostname; id -u; echo $$"), "hello\npod\n0\n1")
}
