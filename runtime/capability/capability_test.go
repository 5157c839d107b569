package capability

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCapabilities(t *testing.T) {
	for name, want := range map[string]int{
		"CAP_CHOWN": unix.CAP_CHOWN, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_SETFCAP": unix.CAP_SETFCAP,
		"CAP_SYSLOG": unix.CAP_SYSLOG, "CAP_CHECKPOINT_RESTORE": unix.CAP_LAST_CAP,
	} {
		if n, ok := Number(name); !ok || n != want || Name(n) != name {
			t.Errorf("%s: number %d %v, back %q; want %d", name, n, ok, Name(n), want)
		}
	}

	set, unknown := Parse("CAP_KILL", "CAP_NONSENSE", "CAP_CHOWN")
	if set != 1<<unix.CAP_KILL|1<<unix.CAP_CHOWN || !slices.Equal(unknown, []string{"CAP_NONSENSE"}) {
		t.Errorf("set %#x, unknown %q", uint64(set), unknown)
	}
	if !set.Has("CAP_KILL") || set.Has("CAP_SYS_ADMIN") || set.Has("CAP_NONSENSE") || set.String() != "CAP_CHOWN,CAP_KILL" {
		t.Errorf("set %v", set)
	}

	if Name(-1) != "" || Name(63) != "" {
		t.Error("a number without capability has a name")
	}
}
