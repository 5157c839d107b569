package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crisp/cri/move"
	"crisp/runtime/checkpoint"
	"crisp/runtime/pages"
)

const (
	// maxRounds is how often memory is sent before a pod is frozen. Another round comes only if
	// the last one had less than half as much as the one before, and more than enoughAhead, in
	// blocks: that takes a connection of 1 Gbit/s a tenth of a second.
	maxRounds   = 6
	enoughAhead = 12 << 20 / move.BlockSize
	// aheadCheck is after how many bytes that were sent ahead the space on the disk is looked
	// at again.
	aheadCheck = 64 << 20
)

// sendAhead sends the memory of containers while they run, and again what has changed
// meanwhile, so that there is little to send once they are frozen. Without it a pod moves as
// well.
func (mv *moving) sendAhead(ctx context.Context, list []*Container) error {
	if mv.p.m.ReadPages == nil {
		return nil
	}
	var groups []pages.Lister
	for _, c := range list {
		group, err := mv.p.groupOf(c)
		if err != nil {
			return err
		}
		groups = append(groups, group)
	}

	before := move.MaxBlocks
	for round := range maxRounds {
		enter(ctx, fmt.Sprintf("send memory to %s, round %d", mv.o.Node, round+1), false)
		fresh, err := mv.sendRound(ctx, groups)
		if err != nil {
			return err
		}
		if fresh < enoughAhead || fresh > before/2 {
			return nil
		}
		before = fresh
	}
	return nil
}

// sendRound sends the blocks that the other node does not have, and returns how many.
func (mv *moving) sendRound(ctx context.Context, groups []pages.Lister) (fresh int, err error) {
	if err := mv.peer.Send(move.Message{Type: move.Ahead}); err != nil {
		return 0, err
	}

	had := mv.known.Len()
	err = mv.peer.Stream(func(w io.Writer) error {
		err := mv.p.m.ReadPages(ctx, groups, func(block []byte) error {
			if !mv.known.Add(block) {
				return nil
			}
			_, err := w.Write(block)
			return err
		})
		if err != nil && ctx.Err() == nil && !errors.Is(err, move.ErrLost) {
			klog.V(2).InfoS("Could not read all memory of a pod that moves", "sandbox", mv.p.record().ID, "err", err)
			return nil
		}
		return err
	})
	return mv.known.Len() - had, err
}

// receiveAhead receives blocks until the containers that have them are saved. The file has no
// name, and ends when it is closed.
func (m *Manager) receiveAhead(ctx context.Context, peer *move.Conn) (file *os.File, count int64, err error) {
	dir := filepath.Join(m.Root, stagesDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, 0, fmt.Errorf("receive memory: %w", err)
	}
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("receive memory: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close() // file is nil by then
		}
	}()

	enter(ctx, "receive memory", false)
	to := &bounded{f: f, most: move.MaxBlocks * move.BlockSize}
	for {
		message, err := peer.Receive(move.Ahead, move.Saved)
		if err != nil {
			return nil, 0, err
		}
		if message.Type == move.Saved {
			return f, to.written / move.BlockSize, nil
		}
		if err := peer.Streamed(func(from io.Reader) error { _, err := io.Copy(to, from); return err }); err != nil {
			return nil, 0, fmt.Errorf("receive memory: %w", err)
		}
	}
}

// bounded is a file for what another node sends ahead.
type bounded struct {
	f             *os.File
	written, most int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.written+int64(len(p)) > b.most {
		return 0, fmt.Errorf("%w: more than %d bytes of memory ahead", checkpoint.ErrTooLarge, b.most)
	}
	if b.written/aheadCheck != (b.written+int64(len(p)))/aheadCheck || b.written == 0 {
		if err := checkpoint.HasSpace(b.f, aheadCheck); err != nil {
			return 0, err
		}
	}
	n, err := b.f.Write(p)
	b.written += int64(n)
	return n, err
}
