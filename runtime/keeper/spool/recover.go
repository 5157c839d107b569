package spool

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Recover determines, for the streams of one log, whether the last write of the
// previous owner is complete, and undoes a partial one. logs are the files that
// it may have gone to. Afterwards the spools hold exactly the bytes that are
// not in the log. If the partial write cannot be cut off, as on a file system that
// has become read-only, its spool holds all of it, and is [Spool.Unfinished].
//
// Writes to a log are sequential, and failed ones were retracted, so all but
// the last are complete. The last one is complete if the file has the expected
// size; a file smaller than before the write was truncated meanwhile by another
// program.
func Recover(spools, logs []int) error {
	headers := make([]header, len(spools))
	last := -1
	for i, fd := range spools {
		h, _, err := read(fd)
		if err != nil {
			return err
		}
		headers[i] = h
		if last < 0 || h.write.Seq > headers[last].write.Seq {
			last = i
		}
	}

	for i := range headers {
		h := &headers[i]
		if h.write.Length == 0 {
			continue
		}

		done := true
		if i == last {
			var err error
			done, err = h.write.done(logs)
			if errors.Is(err, errTorn) {
				continue
			}
			if err != nil {
				return err
			}
		}

		if done {
			h.start = h.next
		}
		h.write = Write{Seq: h.write.Seq}
		if err := h.store(spools[i]); err != nil {
			return err
		}
	}

	return nil
}

// errTorn is a partial write that cannot be undone now.
var errTorn = errors.New("cut unfinished write off log")

// done reports whether a write is complete, and cuts a partial one off the log.
// A write to a file that is not among logs counts as missing: logging it twice
// is better than losing it.
func (w *Write) done(logs []int) (bool, error) {
	for _, fd := range logs {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return false, fmt.Errorf("examine log: %w", err)
		}

		if uint64(st.Dev) != w.Dev || st.Ino != w.Ino {
			continue
		}
		switch {
		case st.Size >= w.Offset+w.Length, st.Size < w.Offset:
			return true, nil
		case st.Size > w.Offset:
			if err := unix.Ftruncate(fd, w.Offset); err != nil {
				return false, fmt.Errorf("%w: %w", errTorn, err)
			}
		}

		return false, nil
	}
	return false, nil
}
