package durable

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
)

const (
	// A journal is rewritten when it is longer than journalSize and than
	// journalTimes its live values.
	journalSize  = 64 << 10
	journalTimes = 4

	journalPerm = 0o600
	// sumSize is the length of a checksum and the space after it.
	sumSize = 9
	// changeMark is the prefix of the data of a line that changes earlier values.
	changeMark = '+'
)

// ErrDamaged means that a journal has corrupt lines that were complete once.
var ErrDamaged = errors.New("corrupt journal")

// Values are JSON values by name. In a change, nil removes one.
type Values map[string]json.RawMessage

// Journal is a file of named values. A change is one write of the changed
// values alone, however many and long the others are, where replacing the file
// makes the file system allocate and free one each time.
//
//	CHECKSUM {"name":value,...}\n    the values
//	CHECKSUM +{"name":value,...}\n   changed values; null removes one
//
// The first line is written by a rename, so a journal always has a complete
// line. A torn line is cut by the next Append. No file is open between calls.
// Only Sync may be called concurrently with another call.
type Journal struct {
	path string
	// size is the length of the complete lines, 0 before the first one.
	size int64
	// torn: other data follows them.
	torn bool
	// fresh: the next Append must have all values.
	fresh bool
	// lengths has the length of each value, and live their sum.
	lengths map[string]int64
	live    int64
}

// NewJournal returns a journal without lines. The first Append replaces a file at path.
func NewJournal(path string) *Journal {
	return &Journal{path: path, fresh: true, lengths: map[string]int64{}}
}

// OpenJournal returns an existing journal and its values. With [ErrDamaged]
// these are the values before the first corrupt line, nil if there are none:
// later changes are lost, which can only be disk corruption if they were
// written in this boot.
func OpenJournal(path string) (*Journal, Values, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	values, end, damaged := readLines(text)
	j := NewJournal(path)
	j.size, j.torn, j.fresh = int64(end), end < len(text), end == 0
	j.measure(values)
	if damaged {
		return j, values, fmt.Errorf("%s: %w", path, ErrDamaged)
	}
	return j, values, nil
}

// Fresh reports whether the next Append must have all values: it is the first
// one, or the first after Restart.
func (j *Journal) Fresh() bool { return j.fresh }

// Restart makes the next Append replace all values.
func (j *Journal) Restart() {
	j.fresh, j.lengths, j.live = true, map[string]int64{}, 0
}

// Append changes values. After an error they are as before.
func (j *Journal) Append(change Values) error {
	if err := j.change(change); err != nil {
		return err
	}
	j.measure(change)
	return nil
}

func (j *Journal) change(change Values) error {
	if j.fresh {
		return j.renew(change)
	}
	line, err := formLine(change, true)
	if err != nil {
		return fmt.Errorf("append to %s: %w", j.path, err)
	}

	if j.size+int64(len(line)) > max(journalSize, journalTimes*(j.live+int64(len(line)))) {
		values, err := j.read()
		if err != nil {
			return err
		}
		merge(values, change)
		return j.renew(values)
	}

	if err := j.append(line); err != nil {
		return fmt.Errorf("append to %s: %w", j.path, err)
	}
	j.size += int64(len(line))
	return nil
}

// measure records the lengths of changed values.
func (j *Journal) measure(change Values) {
	for name, value := range change {
		j.live -= j.lengths[name]
		delete(j.lengths, name)
		if value != nil {
			n := int64(len(name) + len(value))
			j.lengths[name] = n
			j.live += n
		}
	}
}

// Sync makes all changes appended before survive a power cut, or later values.
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

// renew replaces the journal by one line with all values. Synced changes must
// survive a power cut meanwhile.
func (j *Journal) renew(values Values) error {
	line, err := formLine(values, false)
	if err != nil {
		return fmt.Errorf("write %s: %w", j.path, err)
	}

	write := WriteFile
	if j.size == 0 {
		write = ReplaceFile
	}
	if err := write(j.path, line, journalPerm); err != nil {
		return err
	}

	j.size, j.torn, j.fresh = int64(len(line)), false, false
	return nil
}

// read returns the values, which are not kept in memory. Like append, which
// cuts it, it ignores data after the complete lines.
func (j *Journal) read() (Values, error) {
	text, err := os.ReadFile(j.path)
	if err != nil {
		return nil, err
	}
	values, end, damaged := readLines(text[:min(int64(len(text)), j.size)])
	if damaged || int64(end) != j.size {
		return nil, fmt.Errorf("reread %s: %w", j.path, ErrDamaged)
	}
	return values, nil
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

// cut removes data after the complete lines.
func (j *Journal) cut(f *os.File) error {
	err := f.Truncate(j.size)
	j.torn = err != nil
	return err
}

// formLine makes the line of all values or of a change.
func formLine(values Values, change bool) ([]byte, error) {
	if !change {
		values = maps.Clone(values)
		maps.DeleteFunc(values, func(_ string, v json.RawMessage) bool { return v == nil })
	}

	data, err := json.Marshal(values)
	if err != nil {
		return nil, err
	}

	line := make([]byte, sumSize, sumSize+len(data)+2)
	if change {
		line = append(line, changeMark)
	}
	line = append(line, data...)
	copy(line, fmt.Sprintf("%08x ", checksum(line[sumSize:])))
	return append(line, '\n'), nil
}

func checksum(data []byte) uint32 {
	return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
}

// readLines returns the values and the end of the last valid line. damaged is
// true if another terminated line follows or if there is none. A line with all
// values makes up for a corrupt one before it, and a change after a corrupt one
// is ignored.
func readLines(text []byte) (values Values, end int, damaged bool) {
	damaged = true // there is nothing to change yet
	for at := 0; ; {
		n := bytes.IndexByte(text[at:], '\n') + 1
		if n == 0 {
			return values, end, damaged
		}

		line := text[at : at+n-1]
		at += n

		data, whole, ok := readLine(line)
		switch {
		case ok && whole:
			values, damaged = data, false
		case ok && !damaged:
			merge(values, data)
		default:
			damaged = true
			continue
		}
		end = at
	}
}

func merge(values, change Values) {
	for name, value := range change {
		if value == nil {
			delete(values, name)
		} else {
			values[name] = value
		}
	}
}

// readLine returns the values of a line, and whether it has all values.
func readLine(line []byte) (values Values, whole, ok bool) {
	if len(line) <= sumSize {
		return nil, false, false
	}
	data := line[sumSize:]
	if string(line[:sumSize]) != fmt.Sprintf("%08x ", checksum(data)) {
		return nil, false, false
	}

	whole = data[0] != changeMark
	if !whole {
		data = data[1:]
	}
	if err := json.Unmarshal(data, &values); err != nil || values == nil {
		return nil, false, false
	}

	for name, value := range values {
		switch {
		case string(value) != "null":
		case whole:
			delete(values, name)
		default:
			values[name] = nil
		}
	}

	return values, whole, true
}
