package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"crisp/runtime/durable"
	"crisp/runtime/rootpath"
)

const (
	// streamsFile is where runc has what the standard streams were.
	streamsFile = "descriptors.json"
	maxStreams  = 4 << 10
)

// Streams are what a container had as standard input, output and error, as CRIU calls
// it: "pipe:[1234]", "file[3a:5]" for the node's null device, "" for something of the
// container's own.
type Streams [3]string

// WriteStreams adds the standard streams to CRIU's images.
func (s Stage) WriteStreams(list Streams) error {
	text, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encode %s: %w", streamsFile, err)
	}
	if err := durable.ReplaceFile(filepath.Join(s.Images(), streamsFile), text, 0o600); err != nil {
		return fmt.Errorf("add %s: %w", streamsFile, err)
	}
	return nil
}

// ReadStreams reads the standard streams of an unpacked checkpoint, whose directory this
// is; without any they are the container's own. The error is [ErrInvalid] for text that
// is no list.
func ReadStreams(unpacked string) (list Streams, err error) {
	dir, err := os.Open(unpacked)
	if err != nil {
		return list, fmt.Errorf("read the standard streams of a checkpoint: %w", err)
	}
	defer dir.Close()
	text, err := rootpath.ReadFile(dir, streamsFile, maxStreams)
	if errors.Is(err, fs.ErrNotExist) {
		return list, nil
	}
	if err != nil {
		return list, fmt.Errorf("read the standard streams of a checkpoint: %w", err)
	}

	var all []string
	if err := json.Unmarshal(text, &all); err != nil || len(all) != len(list) {
		return list, fmt.Errorf("%w: %s is no list of %d streams", ErrInvalid, streamsFile, len(list))
	}
	form := regexp.MustCompile(`^(pipe:\[[0-9]{1,10}\]|file\[[0-9a-f]{1,8}:[0-9a-f]{1,16}\]|tty\[[0-9a-f]{1,8}:[0-9a-f]{1,8}\])$`)
	for i, key := range all {
		if form.MatchString(key) {
			list[i] = key
		}
	}
	return list, nil
}
