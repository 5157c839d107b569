package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crisp/image/budget"
	"crisp/image/layer"
	"crisp/image/registry"
	"crisp/image/rootfs"
	"crisp/image/store"
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
	// RegistryConfigDirs are directories with a HOST/hosts.toml for registries.
	RegistryConfigDirs []string
	// Pinned are references, with * for any characters, of images that
	// kubelet must not collect.
	Pinned []string
	// Compat32 means that the kernel runs programs of the 32-bit architecture
	// that the machine's own comes from.
	Compat32 bool
	// MaxConcurrentDownloads is for one pull; 0 means 6.
	MaxConcurrentDownloads int
	// MaxUnpackedLayer bounds what one layer may unpack to; 0 leaves only the
	// bound on the compression ratio.
	MaxUnpackedLayer int64
	// ProgressTimeout ends a pull in which no byte arrives for so long; 0
	// means 5 minutes.
	ProgressTimeout time.Duration
	// SyncDelay is how long after a pull its bytes are brought to the disk; 0
	// means 5 seconds.
	SyncDelay time.Duration
	// Sync brings the file system of a directory to the disk, or gives up when ctx
	// ends; nil means to do it in this process.
	Sync func(ctx context.Context, dir *os.File) error
	// BootID names this boot of the machine; empty means to ask the kernel.
	BootID string
	// UserAgent is what registries see.
	UserAgent string
	// Logger gets what happens without a caller to tell; nil means slog's default.
	Logger *slog.Logger

	// point is for tests: see [Service.step].
	point func(effect string) error
}

// Auth is what a caller knows to authenticate itself with to a registry.
type Auth = registry.Auth

// Image describes an image that is here, complete.
type Image struct {
	// ID is the digest of the configuration: "sha256:...".
	ID string
	// RepoTags and RepoDigests are the names it has: "docker.io/library/busybox:latest",
	// "docker.io/library/busybox@sha256:...".
	RepoTags, RepoDigests []string
	// Size is what the image takes up on disk, packed and unpacked.
	Size uint64
	// Pinned images are not to be collected.
	Pinned bool
	// Config is what matters of the image's own configuration: hostile, bounded
	// in size. It has no history, labels, ports, author and time: see [Service.Details].
	Config ocispec.Image
	// ChainIDs are the unpacked layers, the lowest first.
	ChainIDs []digest.Digest
	// Manifest is the digest of the image manifest for this platform.
	Manifest digest.Digest
}

// Service keeps images and root file systems. One process has it open.
type Service struct {
	opts       Options
	log        *slog.Logger
	lock       *os.File
	client     *registry.Client
	blobs      *store.Store
	layers     *layer.Store
	containers *rootfs.Containers
	janitor    *janitor
	snapshot   atomic.Pointer[catalog]
	budget     *budget.Budget
	syncs      syncs
	// partsWanted, which has room for one, has the parts of blobs looked at.
	partsWanted chan struct{}

	// ctx ends with the service; work counts what Close waits for.
	ctx    context.Context // the life of the service itself
	cancel context.CancelCauseFunc
	work   sync.WaitGroup

	closing sync.Once

	layerFlights, blobFlights flights
	pulls                     pulls

	// recordMu serialises changes of the record of images, which wait for the
	// disk. It is taken before mu.
	recordMu sync.Mutex
	// mu keeps what is needed and what is removed consistent. Nobody waits for
	// the disk with it, and readers do not take it.
	mu   sync.Mutex
	pins map[digest.Digest]int // guarded by mu: blobs and layers that pulls need
}

// Open opens the image directory and removes what an earlier process left unfinished.
func Open(_ context.Context, opts Options) (*Service, error) {
	if opts.MaxConcurrentDownloads <= 0 {
		opts.MaxConcurrentDownloads = defaultDownloads
	}
	if opts.SyncDelay <= 0 {
		opts.SyncDelay = defaultSyncDelay
	}
	if opts.Sync == nil {
		opts.Sync = syncHere
	}
	if opts.BootID == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("open images: %w", err)
		}
		opts.BootID = strings.TrimSpace(string(id))
	}

	s := &Service{
		opts: opts, log: opts.Logger, pins: map[digest.Digest]int{}, budget: budget.New(),
		partsWanted: make(chan struct{}, 1),
		syncs:       syncs{wanted: make(chan struct{}, 1), done: make(chan struct{}), failed: map[digest.Digest]bool{}},
		client:      registry.New(registry.Options{ConfigDirs: opts.RegistryConfigDirs, UserAgent: opts.UserAgent, ProgressTimeout: opts.ProgressTimeout, Logger: opts.Logger}),
	}

	if s.log == nil {
		s.log = slog.Default()
	}
	if err := s.open(); err != nil {
		if s.cancel != nil {
			s.cancel(err)
			s.work.Wait()
		}
		return nil, errors.Join(err, s.closeFiles())
	}

	return s, nil
}

func (s *Service) open() error {
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
		s.log.Error("images are to be pulled again", "err", err)
	}

	temp, err := os.Open(s.blobs.TempDir())
	if err != nil {
		return fmt.Errorf("open images: %w", err)
	}

	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.janitor = newJanitor(temp, s.log)
	for _, e := range leftovers {
		s.janitor.add(e.Name())
	}

	s.snapshot.Store(s.loadAll(records, lost))
	go s.syncSoon()
	s.wantSync()
	if !lost {
		s.mu.Lock()
		err = s.demote()
		s.mu.Unlock()
	}
	if err != nil {
		return err
	}

	// If the record is lost, what is here is what the next pulls need.
	s.work.Go(func() { s.watchParts(!lost) })
	return nil
}

// loadAll makes a catalog of the images on record.
func (s *Service) loadAll(records []store.Image, lost bool) *catalog {
	c := &catalog{entries: map[digest.Digest]*entry{}}
	for _, rec := range records {
		c.entries[rec.ID] = s.load(rec)
	}

	s.doubt(c, lost)
	for id, e := range c.entries {
		if e.err == nil && s.torn(e.record) {
			e.err = fmt.Errorf("%w: it was not known to be on disk when the machine ended", ErrInvalid)
		}
		if e.err != nil {
			s.log.Warn("image is damaged and has to be pulled again", "image", id, "err", e.err)
		}
	}

	return c.index(s.opts.Pinned)
}

// torn reports whether a power cut may have torn an image.
func (s *Service) torn(rec store.Image) bool {
	return rec.Unsynced != "" && rec.Unsynced != s.opts.BootID
}

// doubt marks the blobs that a power cut may have torn: those of images that
// may be, or all if the record is lost, without those that some other image
// has on disk for sure.
func (s *Service) doubt(c *catalog, all bool) {
	if all {
		for _, d := range s.blobs.Digests() {
			s.blobs.Doubt(d, true)
		}
	}
	for _, torn := range []bool{true, false} {
		for _, e := range c.entries {
			if s.torn(e.record) == torn {
				for _, d := range e.blobs {
					s.blobs.Doubt(d, torn)
				}
			}
		}
	}
}

// acquire takes the lock that says the directory has an owner.
func acquire(path string) (*os.File, error) {
	// Not for writing, so that the file system can be made read-only meanwhile.
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

// Close ends pulls under way and gives the directory free. Mounts live on. What
// was pulled last is brought to the disk if that does not take long.
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
			s.log.Info("ending before the disk has all of the last pull; the next daemon sees to it")
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

// Reserve waits for so many bytes of what this service may take of the memory
// for decoding documents: see package budget. The caller releases them.
func (s *Service) Reserve(ctx context.Context, bytes int64) (release func(), err error) {
	return s.budget.Work(ctx, bytes)
}

// FsInfo is what images take up.
type FsInfo struct {
	// Mountpoint is the directory that images are in.
	Mountpoint string
	// UsedBytes and InodesUsed count blobs, unpacked layers, and what interrupted
	// pulls have left.
	UsedBytes, InodesUsed uint64
}

// FsInfo tells what images take up. It looks nothing up on disk.
func (s *Service) FsInfo() (FsInfo, error) {
	u := s.blobs.Usage().Add(s.layers.Usage())
	return FsInfo{Mountpoint: s.opts.Root, UsedBytes: u.Bytes, InodesUsed: u.Inodes}, nil
}
