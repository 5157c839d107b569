package durable

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
)

const (
	// A journal is written anew when it is longer than journalSize and than
	// journalTimes its last line.
	journalSize  = 64 << 10
	journalTimes = 32

	journalPerm = 0o600
	// sumSize is the length of a checksum and the space after it.
	sumSize = 9
)

// ErrDamaged means that a journal has lines that were whole once.
var ErrDamaged = errors.New("damaged journal")

// Journal is a file whose last line is the truth. A change of a small file
// costs one write this way, where replacing it makes the file system allocate
// and free a file each time.
//
//	CHECKSUM DATA\n
//
// The first line comes by a rename, so that a journal has a whole line from
// the beginning. A line that was not written whole is cut by the next Append.
// No file is open between two calls. Only Sync may be called while another
// call is under way.
type Journal struct {
	path string
	// size is the length of the whole lines, 0 before the first one.
	size int64
	// torn tells that something else follows them.
	torn bool
}

// NewJournal returns a journal without lines. The first Append replaces what
// may be at path.
func NewJournal(path string) *Journal { return &Journal{path: path} }

// OpenJournal returns a journal that exists and the data of its last line.
// Together with [ErrDamaged] that is the last line that can be read, nil if
// there is none: later ones are lost, which in a boot that has seen them
// written nothing but a fault of the disk explains.
func OpenJournal(path string) (*Journal, []byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	data, end, damaged := lastLine(text)
	j := &Journal{path: path, size: int64(end), torn: end < len(text)}
	if damaged {
		return j, data, fmt.Errorf("%s: %w", path, ErrDamaged)
	}
	return j, data, nil
}

// Append makes data, which has no line feed, the journal's truth. After an
// error the truth is the old one.
func (j *Journal) Append(data []byte) error {
	if bytes.IndexByte(data, '\n') >= 0 {
		return fmt.Errorf("append to %s: a line feed in the data", j.path)
	}
	line := formLine(data)
	if j.size == 0 || j.size+int64(len(line)) > max(journalSize, journalTimes*int64(len(line))) {
		return j.renew(line)
	}
	if err := j.append(line); err != nil {
		return fmt.Errorf("append to %s: %w", j.path, err)
	}
	j.size += int64(len(line))
	return nil
}

// Sync makes what was appended before, or something later, survive a power cut.
func (j *Journal) Sync() error {
	f, err := os.OpenFile(j.path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	err = errors.Join(f.Sync(), f.Close(), SyncDir(filepath.Dir(j.path)))
	if err != nil {
		return fmt.Errorf("sync %s: %w", j.path, err)
	}
	return nil
}

// renew replaces the journal by one line. What was synced before must not be
// lost with the power.
func (j *Journal) renew(line []byte) error {
	write := WriteFile
	if j.size == 0 {
		write = ReplaceFile
	}
	if err := write(j.path, line, journalPerm); err != nil {
		return err
	}
	j.size, j.torn = int64(len(line)), false
	return nil
}

func (j *Journal) append(line []byte) error {
	f, err := os.OpenFile(j.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if j.torn {
		if err := j.cut(f); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if _, err = f.WriteAt(line, j.size); err != nil {
		j.torn = true
		err = errors.Join(err, j.cut(f))
	}
	return errors.Join(err, f.Close())
}

// cut removes what follows the whole lines.
func (j *Journal) cut(f *os.File) error {
	err := f.Truncate(j.size)
	j.torn = err != nil
	return err
}

func formLine(data []byte) []byte {
	line := make([]byte, 0, sumSize+len(data)+1)
	line = fmt.Appendf(line, "%08x ", checksum(data))
	return append(append(line, data...), '\n')
}

func checksum(data []byte) uint32 {
	return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
}

// lastLine returns the data of the last whole line and where the line ends.
// It is damaged if another line, which was ended, follows or if there is none.
func lastLine(text []byte) (data []byte, end int, damaged bool) {
	end = bytes.LastIndexByte(text, '\n') + 1
	for end > 0 {
		start := bytes.LastIndexByte(text[:end-1], '\n') + 1
		if data, ok := readLine(text[start : end-1]); ok {
			return data, end, damaged
		}
		end, damaged = start, true
	}
	return nil, 0, true
}

func readLine(line []byte) (data []byte, ok bool) {
	if len(line) < sumSize {
		return nil, false
	}
	data = line[sumSize:]
	return data, string(line[:sumSize]) == fmt.Sprintf("%08x ", checksum(data))
}
