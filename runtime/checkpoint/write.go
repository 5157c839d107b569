package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/criu"
	"crisp/runtime/durable"
)

const (
	// tarBlock is the size of a header, and the unit of files, in a tar archive.
	tarBlock = 512
	// copied is how much is copied at once, hashed at once, and sent to the disk at once, in
	// bytes.
	copied, hashedAtOnce, sent = 8 << 20, 256 << 10, 16 << 20
)

// Archive is an archive that is being written where it is to be. CRIU's memory goes to it
// directly, as a [criu.PageSink]. What is there is hashed and on its way to the disk while
// more comes, so that nobody waits for either at the end alone.
type Archive struct {
	file string
	f    *os.File // nameless until it is complete
	end  int64    // of all that is complete, in bytes

	hashed chan struct{} // closed when the hash is done
	files  []file        // what it has found, once it is done
	err    error

	mu   sync.Mutex
	more *sync.Cond
	// entries are the files so far. The last one is being written, until all are there.
	entries  []entry
	complete bool // no more comes
	closed   bool
}

// entry is a file in an archive: its content, from an offset on.
type entry struct {
	name     string
	at, size int64
	complete bool
}

var _ criu.PageSink = (*Archive)(nil)

// NewArchive begins an archive, which appears as a file when [Stage.Write] has completed it.
// Close ends it.
func NewArchive(file string) (*Archive, error) {
	f, err := os.OpenFile(filepath.Dir(file), os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write checkpoint %s: %w", file, err)
	}
	a := &Archive{file: file, f: f, hashed: make(chan struct{})}
	a.more = sync.NewCond(&a.mu)
	go func() {
		defer close(a.hashed)
		a.files, a.err = a.hash()
	}()
	if err := a.header(tar.Header{Typeflag: tar.TypeDir, Name: ImagesDir + "/", Mode: 0o700}, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("write checkpoint %s: %w", file, err), a.Close())
	}
	a.end = tarBlock
	return a, nil
}

// Close removes the archive, unless it is complete.
func (a *Archive) Close() error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.more.Broadcast()
	<-a.hashed
	return a.f.Close()
}

// header writes a header at an offset. It has one block, whatever the size of the file.
func (a *Archive) header(h tar.Header, at int64) error {
	var b bytes.Buffer
	h.Format, h.ModTime = tar.FormatGNU, time.Now()
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		return err
	}
	if b.Len() != tarBlock {
		return fmt.Errorf("%w: the name %.200q is too long", ErrUnfit, h.Name)
	}
	_, err := a.f.WriteAt(b.Bytes(), at)
	return err
}

// Next begins a file of CRIU's.
func (a *Archive) Next(name string) (*os.File, int64, error) {
	if err := a.next(path.Join(ImagesDir, name)); err != nil {
		return nil, 0, fmt.Errorf("write checkpoint %s: %w", a.file, err)
	}
	return a.f, a.end + tarBlock, nil
}

// next ends a file and begins another. Its header is written when its size is known.
func (a *Archive) next(name string) error {
	if err := a.endEntry(); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.entries) == maxFiles {
		return fmt.Errorf("%w: more than %d files of CRIU", ErrUnfit, maxFiles)
	}
	a.entries = append(a.entries, entry{name: name, at: a.end + tarBlock})
	return nil
}

// Moved notes that n bytes more are there of the last file.
func (a *Archive) Moved(n int64) {
	a.mu.Lock()
	a.entries[len(a.entries)-1].size += n
	a.mu.Unlock()
	a.more.Signal()
}

// endEntry ends the file that is being written.
func (a *Archive) endEntry() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.entries) == 0 || a.entries[len(a.entries)-1].complete {
		return nil
	}
	e := &a.entries[len(a.entries)-1]
	e.complete = true
	a.more.Signal()
	a.end = e.at + (e.size+tarBlock-1)/tarBlock*tarBlock
	return a.header(tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o600, Size: e.size}, e.at-tarBlock)
}

// add adds a file of a directory.
func (a *Archive) add(ctx context.Context, root fs.FS, name string) error {
	from, err := root.Open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	return a.addFrom(ctx, name, from)
}

func (a *Archive) addFrom(ctx context.Context, name string, from io.Reader) error {
	if err := a.next(name); err != nil {
		return err
	}
	if _, err := a.f.Seek(a.end+tarBlock, io.SeekStart); err != nil {
		return err
	}

	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.CopyN(a.f, from, copied) // by the kernel, of files
		a.Moved(n)
		if errors.Is(err, io.EOF) {
			return a.endEntry()
		}
		if err != nil {
			return err
		}
	}
}

// await waits for more of the i-th file than is hashed, and returns where that is. It is
// nothing if the file is complete, and ok is false if there is no such file.
func (a *Archive) await(i int, hashed int64) (e entry, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		switch {
		case a.closed, i == len(a.entries) && a.complete:
			return entry{}, false
		case i == len(a.entries):
		case a.entries[i].complete || a.entries[i].size > hashed:
			return a.entries[i], true
		}
		a.more.Wait()
	}
}

// hash measures all files as they come, and has them written to the disk.
func (a *Archive) hash() (found []file, err error) {
	buffer := make([]byte, hashedAtOnce)
	begun := int64(0) // up to where it is on its way to the disk
	for i := 0; ; i++ {
		m := newMeter()
		for {
			e, ok := a.await(i, m.size)
			if !ok {
				return found, nil
			}
			if m.size == e.size {
				found = append(found, m.file(e.name))
				break
			}

			n := min(e.size-m.size, hashedAtOnce)
			if _, err := a.f.ReadAt(buffer[:n], e.at+m.size); err != nil {
				return found, err
			}
			_, _ = m.Write(buffer[:n]) // a hash never fails
			if at := e.at + m.size; at-begun >= sent {
				// It is waited for when all is there, and errors are reported then.
				_ = unix.SyncFileRange(int(a.f.Fd()), begun, at-begun, unix.SYNC_FILE_RANGE_WRITE)
				begun = at
			}
		}
	}
}

// measured waits until all files are hashed. No more may come.
func (a *Archive) measured(ctx context.Context) ([]file, error) {
	a.mu.Lock()
	a.complete = true
	a.mu.Unlock()
	a.more.Broadcast()
	select {
	case <-a.hashed:
		return a.files, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Write completes an archive with all that is in the stage. It appears whole or not at all,
// whatever is killed, and only root can read it: it has the memory of the container. The
// key signs what is in it, and digest is that of what it has signed, for [Key.SignPod].
func (s Stage) Write(ctx context.Context, a *Archive, key *Key) (digest string, err error) {
	if digest, err = s.complete(ctx, a, key); err != nil {
		return "", fmt.Errorf("write checkpoint %s: %w", a.file, err)
	}
	return digest, nil
}

func (s Stage) complete(ctx context.Context, a *Archive, key *Key) (digest string, err error) {
	root := os.DirFS(s.dir())
	err = s.each(root, func(name string, _ fs.FileInfo) error { return a.add(ctx, root, name) })
	if err == nil {
		err = a.endEntry()
	}
	if err != nil {
		return "", err
	}
	found, err := a.measured(ctx)
	if err != nil {
		return "", err
	}

	text, err := key.sign(manifest{Kind: kindContainer, Files: found})
	if err != nil {
		return "", err
	}
	if err := a.trailer(text); err != nil {
		return "", err
	}
	// A node that is about to fail is what checkpoints are for.
	if err := a.f.Sync(); err != nil {
		return "", err
	}
	if err := appear(a.f, a.file); err != nil {
		return "", err
	}
	return digestOf(text), durable.SyncDir(filepath.Dir(a.file))
}

// trailer adds what is signed, which is hashed nowhere, and the end of the archive.
func (a *Archive) trailer(signed []byte) error {
	if err := a.header(tar.Header{Typeflag: tar.TypeReg, Name: manifestFile, Mode: 0o600, Size: int64(len(signed))}, a.end); err != nil {
		return err
	}
	a.end += tarBlock
	if _, err := a.f.WriteAt(signed, a.end); err != nil {
		return err
	}
	size := int64(len(signed)+tarBlock-1)/tarBlock*tarBlock + 2*tarBlock
	return a.f.Truncate(a.end + size)
}

// each calls do with the files of a stage, those of CRIU last.
func (s Stage) each(root fs.FS, do func(name string, info fs.FileInfo) error) error {
	for _, dir := range []string{".", ImagesDir} {
		entries, err := fs.ReadDir(root, dir)
		if err != nil {
			return err
		}
		if len(entries) > maxFiles {
			return fmt.Errorf("%w: more than %d files of CRIU", ErrUnfit, maxFiles)
		}

		for _, e := range entries {
			if e.IsDir() {
				continue
			}
			info, err := e.Info()
			if err == nil {
				err = do(path.Join(dir, e.Name()), info)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
