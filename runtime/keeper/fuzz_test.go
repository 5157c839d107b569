package keeper

import (
	"testing"

	"golang.org/x/sys/unix"

	"crisp/runtime/spawn"
	"crisp/runtime/wire"
)

// FuzzDaemon sends arbitrary packets after the handshake: each four bytes of
// script are a packet's type, sequence number, number of files and length of
// payload, which follows. None of the files is a plan, so nothing is started.
// The keeper must disconnect or reply, and serve the next daemon.
func FuzzDaemon(f *testing.F) {
	for typ := range byte(24) {
		f.Add([]byte{typ, 1, 0, 0, typ, 1, 3, 0})
		f.Add(append([]byte{typ, 1, 2, 40}, make([]byte, 40)...))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		k := newKeeper(t.TempDir(), spawn.Options{})
		rude := dialFuzzed(t, k)
		play(rude, script)
		unix.Close(rude)
		unix.Close(dialFuzzed(t, k)) // can still connect

		shutDown(t, k)
	})
}

// dialFuzzed connects to a keeper and does the handshake.
func dialFuzzed(t *testing.T, k *keeper) int {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k.welcome(fds[1])
	if err := unix.Sendto(fds[0], []byte{1, 0, 0, 0, 0, wire.Version}, 0, nil); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(fds[0], make([]byte, 64)); n == 0 || err != nil {
		t.Fatalf("no handshake: %d bytes, %v", n, err)
	}
	return fds[0]
}

// play sends a script's packets.
func play(fd int, script []byte) {
	for len(script) >= 4 {
		head, n := script[:4], min(int(script[3]), len(script)-4)
		packet := append([]byte{head[0] % 24, head[1] % 4, 0, 0, 0}, script[4:4+n]...)
		script = script[4+n:]
		var oob []byte
		if files := int(head[2] % 5); files > 0 {
			oob = unix.UnixRights([]int{0, 1, 2, 0, 1}[:files]...)
		}
		if unix.Sendmsg(fd, packet, oob, nil, unix.MSG_NOSIGNAL) != nil {
			return
		}
	}
}
