package testkit

import (
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	if a, b := Name(t), Name(t); a != b || !strings.HasPrefix(a, "TestName") {
		t.Errorf("got names %q and %q, want one name that starts with the test's", a, b)
	}
}
