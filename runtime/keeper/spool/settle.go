package spool

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Settle decides, for the streams of one log, whether the last write that
// their former mover had begun was done, and undoes it if it was done in part.
// logs are the files that it may have gone to. Afterwards the spools hold
// exactly what is not in the log.
//
// Writes to a log are made one after the other, and those that failed were
// retracted, so all but the last are complete. That one is, too, if the file has the size it should have; a file
// that is smaller than before it was emptied by somebody else meanwhile.
func Settle(spools, logs []int) error {
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
			if done, err = h.write.done(logs); err != nil {
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

// done says whether a write is complete. One that is not leaves nothing. A
// file that nobody has any more is taken not to have it: twice is better than
// not at all.
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
				return false, fmt.Errorf("cut unfinished write off log: %w", err)
			}
		}

		return false, nil
	}
	return false, nil
}
