package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"crisp/runtime/wire"
)

// Upgrade makes the keeper of stateDir execute the given program, empty as for
// [Connect], with all that it holds. If it already runs that program nothing
// happens. Otherwise replaced is true and every connection to it ends, as if it
// had died; new connections find all entries. After an error the old program
// continues.
func Upgrade(ctx context.Context, stateDir, binary string) (replaced bool, err error) {
	dir, err := openState(stateDir)
	if err == nil {
		defer dir.Close()
		replaced, err = upgrade(ctx, dir, binary)
	}
	if err != nil {
		return false, fmt.Errorf("upgrade keeper: %w", err)
	}
	return replaced, nil
}

func upgrade(ctx context.Context, dir *os.File, binary string) (replaced bool, err error) {
	image, err := sealedBinary(binary)
	if err != nil {
		return false, err
	}
	defer image.Close()

	fd, err := dial(dir)
	if err != nil {
		return false, err
	}

	conn, err := wire.NewConn(fd)
	if err != nil {
		return false, err
	}
	defer conn.Close()

	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.CheckPeer(); err != nil {
		return false, err
	}

	if err := conn.Send(0, wire.Upgrade{}, wire.Files{{Role: wire.Program, FD: int(image.Fd())}}); err != nil {
		return false, err
	}
	p, err := conn.Recv()
	switch {
	case errors.Is(err, io.EOF): // it has executed the program
		return true, nil
	case err != nil && ctx.Err() != nil:
		return false, ctx.Err()
	case err != nil:
		return false, err
	}

	p.Files.Close()
	if f, ok := p.Msg.(wire.Fail); ok {
		return false, f
	}
	return false, nil
}
