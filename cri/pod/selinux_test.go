package pod

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/cri/spec/selinux"
)

func TestLabelError(t *testing.T) {
	for err, invalid := range map[error]bool{
		nil: false, unix.EMFILE: false, fmt.Errorf("%w: u:r:t:s0", selinux.ErrLabel): true,
	} {
		if got := labelError(err); !errors.Is(got, err) || errors.Is(got, ErrInvalid) != invalid {
			t.Errorf("%v became %v, want the caller's mistake: %v", err, got, invalid)
		}
	}
}
