package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crisp/image/budget"
	"crisp/image/layer"
	"crisp/image/registry"
	"crisp/image/rootfs"
	"crisp/image/store"
	"crisp/runtime/durable"
)

const (
	layersDir     = "layers"
	containersDir = "containers"
	lockFile      = "lock"

	dirPerm  = 0o700
	filePerm = 0o600

	defaultDownloads = 6
)

// Options of a [Service].
type Options struct {
	// Root is the directory that everything is kept in.
	Root string
	// Choices are those to begin with, see [Service.Choose].
	Choices
	// Compat32 means that the kernel runs 32-bit programs of the machine's
	// architecture: i386 on amd64, ARM on arm64.
	Compat32 bool
	// MaxUnpackedLayer bounds the unpacked size of a layer, in bytes; 0 leaves
	// only the bound on the compression ratio.
	MaxUnpackedLayer int64
	// SyncDelay is how long after a pull its data is synced; 0 means 5 seconds.
	SyncDelay time.Duration
	// Sync syncs the file system that a directory is on, or returns when ctx
	// ends; nil means to sync in this process.
	Sync func(ctx context.Context, dir *os.File) error
	// BootID identifies this boot of the machine; empty means to ask the kernel.
	BootID string
	// UserAgent is the User-Agent header of requests.
	UserAgent string
	// Meter measures pulls; nil for none.
	Meter Meter

	// failpoint is for tests: see [Service.withFailpoints].
	failpoint func(effect string) error
}

// Choices are the node's for pulls. They may change while the service runs.
type Choices struct {
	// RegistryConfigDirs are directories with a HOST/hosts.toml for registries.
	RegistryConfigDirs []string
	// Pinned are references, with * for any characters, of images that
	// kubelet must not garbage-collect.
	Pinned []string
	// MaxConcurrentDownloads bounds the layers that one pull fetches at the same
	// time; 0 means 6.
	MaxConcurrentDownloads int
	// ProgressTimeout cancels a pull in which no byte arrives for so long; 0
	// means 5 minutes.
	ProgressTimeout time.Duration
}

// Meter measures pulls. Its methods must not block.
type Meter interface {
	// Pulled is called once for each pull, which several callers may share.
	Pulled(took time.Duration, err error)
	// Downloaded is called for bytes of layers that arrive from a registry.
	Downloaded(bytes int)
}

// Auth holds a caller's credentials for a registry.
type Auth = registry.Auth

// Image describes an image that is present and complete.
type Image struct {
	// ID is the digest of the configuration: "sha256:...".
	ID string
	// RepoTags and RepoDigests are its names: "docker.io/library/busybox:latest",
	// "docker.io/library/busybox@sha256:...".
	RepoTags, RepoDigests []string
	// Size is the disk space that the image uses, blobs and unpacked layers, in
	// bytes.
	Size uint64
	// Pinned images must not be garbage-collected.
	Pinned bool
	// Config is the image's own configuration, hostile but bounded in size. It
	// lacks history, labels, ports, author and time: see [Service.Details].
	Config ocispec.Image
	// ChainIDs are the unpacked layers, the lowest first.
	ChainIDs []digest.Digest
	// Manifest is the digest of the image manifest for this platform.
	Manifest digest.Digest
	// Checkpoint is the container of which the image is a checkpoint, as its annotations
	// have it, "" for an ordinary image.
	Checkpoint string
}

// Service keeps images and root file systems. Only one process at a time can
// open a directory.
type Service struct {
	opts       Options
	choices    atomic.Pointer[Choices]
	lock       *os.File
	client     atomic.Pointer[registry.Client]
	blobs      *store.Store
	layers     *layer.Store
	containers *rootfs.Containers
	janitor    *janitor
	snapshot   atomic.Pointer[catalog]
	budget     *budget.Budget
	syncs      syncs
	// partsWanted, of capacity one, wakes the goroutine that bounds partial
	// downloads.
	partsWanted chan struct{}

	// ctx ends with the service; work counts the goroutines that Close waits for.
	ctx    context.Context // the life of the service itself
	cancel context.CancelCauseFunc
	work   sync.WaitGroup

	closing sync.Once

	layerFlights, blobFlights flights
	pulls                     pulls

	// recordMu serialises changes of the record of images, which may wait for
	// the disk. It is taken before mu.
	recordMu sync.Mutex
	// mu makes sure that nothing is removed that is becoming needed. It is held
	// while names change, by mkdir, symlink and rename, but never during a sync or
	// a transfer of data. Readers do not take it.
	mu   sync.Mutex
	pins map[digest.Digest]int // guarded by mu: blobs and layers that pulls need
}

// Open opens the image directory and removes what an earlier process left
// incomplete. Close the service when done.
func Open(opts Options) (*Service, error) {
	if opts.SyncDelay <= 0 {
		opts.SyncDelay = defaultSyncDelay
	}
	if opts.Sync == nil {
		opts.Sync = syncHere
	}
	if opts.BootID == "" {
		id, err := durable.BootID()
		if err != nil {
			return nil, fmt.Errorf("open images: %w", err)
		}
		opts.BootID = id
	}

	s := &Service{
		opts: opts, pins: map[digest.Digest]int{}, budget: budget.New(),
		partsWanted: make(chan struct{}, 1),
		syncs:       syncs{wanted: make(chan struct{}, 1), done: make(chan struct{}), failed: map[digest.Digest]bool{}},
	}
	s.choose(opts.Choices)

	if err := s.open(); err != nil {
		if s.cancel != nil {
			s.cancel(err)
			s.work.Wait()
		}
		return nil, errors.Join(err, s.closeFiles())
	}

	return s, nil
}

// choose changes the node's choices for pulls that begin from now on.
func (s *Service) choose(c Choices) {
	if c.MaxConcurrentDownloads <= 0 {
		c.MaxConcurrentDownloads = defaultDownloads
	}
	s.choices.Store(&c)
	s.client.Store(registry.New(registry.Options{ConfigDirs: c.RegistryConfigDirs, UserAgent: s.opts.UserAgent, ProgressTimeout: c.ProgressTimeout}))
}

// Choose changes the node's choices for pulls that begin from now on, and which images
// are pinned.
func (s *Service) Choose(c Choices) {
	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	s.choose(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Readers share what the snapshot has, so the images are copied.
	next := &catalog{byID: map[digest.Digest]*stored{}}
	for id, im := range s.snapshot.Load().byID {
		fresh := *im
		next.byID[id] = &fresh
	}
	s.snapshot.Store(next.index(c.Pinned))
}

// open locks and opens the directory, reads the record of images and starts the
// service's goroutines.
func (s *Service) open() error {
	if err := s.openStores(); err != nil {
		return err
	}

	// Nothing in the temporary directory is in use yet.
	leftovers, err := os.ReadDir(s.blobs.TempDir())
	if err != nil {
		return fmt.Errorf("open images: %w", err)
	}

	records, err := s.blobs.Images()
	lost := errors.Is(err, store.ErrRecord)
	if err != nil && !lost {
		return err
	}
	if lost {
		klog.ErrorS(err, "Lost the record of images; they have to be pulled again")
	}

	temp, err := os.Open(s.blobs.TempDir())
	if err != nil {
		return fmt.Errorf("open images: %w", err)
	}

	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.janitor = newJanitor(temp)
	for _, e := range leftovers {
		s.janitor.add(e.Name())
	}

	s.snapshot.Store(s.loadAll(records, lost))
	go s.syncSoon()
	s.wantSync()

	// If the record is lost, what is here is what the next pulls need.
	if !lost {
		s.mu.Lock()
		err = s.demote()
		s.mu.Unlock()
	}
	if err != nil {
		return err
	}

	s.work.Go(func() { s.watchParts(!lost) })
	return nil
}

// openStores locks the directory and opens what is in it.
func (s *Service) openStores() error {
	if err := os.MkdirAll(s.opts.Root, dirPerm); err != nil {
		return fmt.Errorf("open images: %w", err)
	}

	var err error
	if s.lock, err = acquire(filepath.Join(s.opts.Root, lockFile)); err != nil {
		return err
	}
	if s.blobs, err = store.Open(s.opts.Root); err != nil {
		return err
	}
	if s.layers, err = layer.Open(filepath.Join(s.opts.Root, layersDir), s.blobs.TempDir(), s.opts.BootID); err != nil {
		return err
	}
	if s.containers, err = rootfs.OpenContainers(filepath.Join(s.opts.Root, containersDir), s.blobs.TempDir()); err != nil {
		return err
	}
	return nil
}

// CheckFileSystem reports whether containers can be stored where images are. The
// error wraps [ErrUnsupported].
func (s *Service) CheckFileSystem(ctx context.Context) error {
	return classify(rootfs.CheckFileSystem(ctx, s.blobs.TempDir(), s.layers.Overlay(nil).OneString))
}

// loadAll builds the catalog from the records of images.
func (s *Service) loadAll(records []store.Image, lost bool) *catalog {
	c := &catalog{byID: map[digest.Digest]*stored{}}
	for _, rec := range records {
		c.byID[rec.ID] = s.load(rec)
	}

	s.doubt(c, lost)
	for id, im := range c.byID {
		if im.err == nil && s.torn(im.record) {
			im.err = fmt.Errorf("%w: it was not synced before the machine went down", ErrInvalid)
		}
		if im.err != nil {
			klog.InfoS("Image is damaged and has to be pulled again", "image", id, "err", im.err)
		}
	}

	return c.index(s.choices.Load().Pinned)
}

// torn reports whether a power cut may have torn an image.
func (s *Service) torn(rec store.Image) bool {
	return rec.Unsynced != "" && rec.Unsynced != s.opts.BootID
}

// doubt marks the blobs that a power cut may have torn: those of images that
// may be torn, or all if the record is lost, except blobs that another image is
// known to have synced.
func (s *Service) doubt(c *catalog, all bool) {
	if all {
		for _, d := range s.blobs.Digests() {
			s.blobs.Doubt(d, true)
		}
	}

	// Synced images come last, so that what they share with torn ones is trusted.
	for _, torn := range []bool{true, false} {
		for _, im := range c.byID {
			if s.torn(im.record) != torn {
				continue
			}
			for _, d := range im.blobs {
				s.blobs.Doubt(d, torn)
			}
		}
	}
}

// acquire locks the image directory for this process.
func acquire(path string) (*os.File, error) {
	// Opened read-only, so that the file system can be remounted read-only while
	// the service runs.
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, filePerm)
	if err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}

	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: %s", ErrLocked, path)
	}

	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// Close cancels pulls in progress and unlocks the directory. Mounts stay. The
// last pull is synced if that does not take long.
func (s *Service) Close() error {
	var err error
	s.closing.Do(func() {
		s.cancel(ErrClosed)
		s.pulls.close()
		s.work.Wait()
		<-s.syncs.done

		ctx, cancel := context.WithTimeout(context.Background(), closeSync)
		defer cancel()
		err = s.sync(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			klog.InfoS("Shut down before the last pull is synced; the next start will sync it")
			err = nil
		}
		err = errors.Join(err, s.closeFiles())
	})

	return err
}

func (s *Service) closeFiles() error {
	var errs []error
	if s.janitor != nil {
		errs = append(errs, s.janitor.close())
	}
	if s.layers != nil {
		errs = append(errs, s.layers.Close())
	}
	if s.blobs != nil {
		errs = append(errs, s.blobs.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}

	return errors.Join(errs...)
}

// Reserve waits for a number of bytes of the service's memory budget for
// decoding documents: see package budget. The caller releases them.
func (s *Service) Reserve(ctx context.Context, bytes int64) (release func(), err error) {
	return s.budget.Work(ctx, bytes)
}

// FsInfo is the disk usage of images.
type FsInfo struct {
	// Mountpoint is the directory that images are in.
	Mountpoint string
	// UsedBytes and InodesUsed count blobs, unpacked layers and partial
	// downloads.
	UsedBytes, InodesUsed uint64
}

// FsInfo reports the disk usage of images from memory, without looking at the
// disk.
func (s *Service) FsInfo() (FsInfo, error) {
	u := s.blobs.Usage().Add(s.layers.Usage())
	return FsInfo{Mountpoint: s.opts.Root, UsedBytes: u.Bytes, InodesUsed: u.Inodes}, nil
}
