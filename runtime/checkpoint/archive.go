package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/criu"
	"crisp/runtime/durable"
	"crisp/runtime/rootpath"
)

// The names in an archive.
const (
	ImagesDir   = "checkpoint"
	configFile  = "config.dump"
	specFile    = "spec.dump"
	statusFile  = "status"
	diffFile    = "rootfs-diff.tar"
	deletedFile = "deleted.files"
	// deletedRaw has those that are no UTF-8, which a list of paths in JSON cannot have, as
	// base64.
	deletedRaw   = "crisp.deleted"
	containerLog = "container.log"
	statsFile    = "stats-dump"
)

// Config is the file config.dump. Its fields are those that checkpointctl and the
// engines know.
type Config struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`
	RootfsImageName string    `json:"rootfsImageName,omitempty"`
	OCIRuntime      string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
	RestoredAt      time.Time `json:"restoredTime"`
	Restored        bool      `json:"restored"`
}

// Status is the file status. Times are in nanoseconds since the epoch.
type Status struct {
	CreatedAt, StartedAt, FinishedAt int64
	ExitCode                         int32
	Pid                              uint32
	Reason, Message                  string
}

// Content is what an archive has besides the images of CRIU.
type Content struct {
	Config Config
	Spec   *specs.Spec
	Status Status
	Diff   Diff
	// Log is the path of the container's log, "" for none.
	Log string
}

// Stage is a directory in which an archive is put together.
type Stage struct{ parent, name string }

// NewStage makes a directory of this name in parent, where there must be none.
func NewStage(parent, name string) (Stage, error) {
	s := Stage{parent, name}
	if err := os.MkdirAll(s.Images(), 0o700); err != nil {
		return s, fmt.Errorf("make directory for a checkpoint: %w", err)
	}
	return s, nil
}

func (s Stage) dir() string { return filepath.Join(s.parent, s.name) }

// Images is the directory for CRIU's images.
func (s Stage) Images() string { return filepath.Join(s.dir(), ImagesDir) }

// Remove removes the stage.
func (s Stage) Remove(ctx context.Context) error {
	parent, err := os.Open(s.parent)
	if err != nil {
		return fmt.Errorf("remove a checkpoint's directory: %w", err)
	}
	defer parent.Close()
	return rootpath.RemoveAll(ctx, parent, s.name)
}

// Fill adds all but CRIU's images, while the container is frozen.
func (s Stage) Fill(ctx context.Context, c Content) error {
	// Where others look for them; CRIU writes them among its images.
	for _, name := range []string{criu.LogFile, statsFile} {
		err := os.Rename(filepath.Join(s.Images(), name), filepath.Join(s.dir(), name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("add %s: %w", name, err)
		}
	}

	deleted, err := s.diff(ctx, c.Diff)
	if err != nil {
		return err
	}
	files := map[string]any{configFile: c.Config, specFile: c.Spec, statusFile: c.Status}
	maps.Copy(files, lists(deleted))

	if err := s.add(files); err != nil {
		return err
	}
	return s.log(ctx, c.Log)
}

// lists are the files with the paths of deleted files.
func lists(deleted []string) map[string]any {
	var plain []string
	var raw [][]byte
	for _, path := range deleted {
		if utf8.ValidString(path) {
			plain = append(plain, path)
		} else {
			raw = append(raw, []byte(path))
		}
	}

	files := map[string]any{}
	if len(plain) > 0 {
		files[deletedFile] = plain
	}
	if len(raw) > 0 {
		files[deletedRaw] = raw
	}
	return files
}

// add writes files as JSON.
func (s Stage) add(files map[string]any) error {
	for name, value := range files {
		text, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			return fmt.Errorf("encode %s: %w", name, err)
		}
		if err := durable.ReplaceFile(filepath.Join(s.dir(), name), text, 0o600); err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
	}
	return nil
}

func (s Stage) diff(ctx context.Context, d Diff) (deleted []string, err error) {
	f, err := os.OpenFile(filepath.Join(s.dir(), diffFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("add %s: %w", diffFile, err)
	}
	deleted, err = d.Write(ctx, f)
	return deleted, errors.Join(err, f.Close())
}

// log adds the container's log, which may have been removed.
func (s Stage) log(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	from, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("add %s: %w", containerLog, err)
	}
	defer from.Close()

	info, err := from.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	to, err := os.OpenFile(filepath.Join(s.dir(), containerLog), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("add %s: %w", containerLog, err)
	}
	if _, err := io.Copy(&writer{ctx, to}, io.LimitReader(from, info.Size())); err != nil {
		return errors.Join(fmt.Errorf("add %s: %w", containerLog, err), to.Close())
	}
	return to.Close()
}

// Stream writes the archive, signed with key, to whoever reads it as it comes.
func (s Stage) Stream(ctx context.Context, to io.Writer, key *Key) error {
	if err := s.pack(&writer{ctx, to}, key); err != nil {
		return fmt.Errorf("stream checkpoint: %w", err)
	}
	return nil
}

// pack writes all files, measures each, and adds what is signed of them.
func (s Stage) pack(to io.Writer, key *Key) error {
	w := tar.NewWriter(to)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: ImagesDir + "/", Mode: 0o700, ModTime: time.Now()}); err != nil {
		return err
	}
	m := manifest{Kind: kindContainer}
	root := os.DirFS(s.dir())
	err := s.each(root, func(name string, info fs.FileInfo) error {
		found, err := add(w, root, name, info)
		m.Files = append(m.Files, found)
		return err
	})
	if err != nil {
		return err
	}
	if len(m.Files) > maxFiles {
		return fmt.Errorf("%w: more than %d files of CRIU", ErrUnfit, maxFiles)
	}

	text, err := key.sign(m)
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: manifestFile, Mode: 0o600, Size: int64(len(text)), ModTime: time.Now()}); err != nil {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	return w.Close()
}

// add adds one file to an archive.
func add(w *tar.Writer, root fs.FS, name string, info fs.FileInfo) (file, error) {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: info.Size(), ModTime: info.ModTime()}
	if err := w.WriteHeader(h); err != nil {
		return file{}, err
	}
	f, err := root.Open(name)
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	measured := newMeter()
	_, err = io.Copy(io.MultiWriter(w, measured), f)
	return measured.file(name), err
}

// appear gives a nameless file its name, in place of a regular file that has it.
func appear(f *os.File, name string) error {
	for {
		err := link(f, name)
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		info, err := os.Lstat(name)
		if err == nil && !info.Mode().IsRegular() {
			return fmt.Errorf("%w: it is no regular file", os.ErrExist)
		}
		if err == nil {
			err = os.Remove(name)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
}

// link gives a nameless file its name, unless there is something of that name.
func link(f *os.File, name string) error {
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
}

// writer ends with its context.
type writer struct {
	ctx context.Context // of one call
	w   io.Writer
}

func (w *writer) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.w.Write(p)
}
