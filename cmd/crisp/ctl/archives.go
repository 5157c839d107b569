package ctl

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"crisp/cmd/crisp/cli"
	"crisp/cri/admin"
	"crisp/cri/client"
)

// ArchiveCommands are the commands below images that move them in archives, and remove
// what nothing uses.
func ArchiveCommands() []*cobra.Command {
	return []*cobra.Command{importCommand(), exportCommand(), pushCommand(), gcCommand()}
}

// importCommand is the command images import.
func importCommand() *cobra.Command {
	name, pin := "", false
	var errs io.Writer
	cmd := withDaemon(&cobra.Command{
		Use: "import [--name NAME] [--pin] [FLAGS] ARCHIVE...", Short: "Add the images of archives",
		Long: `Add the images of archives, and print their names. An archive is a file, a
directory, or - for the standard input: an OCI layout, as crisp images export, ctr
images export, podman save and skopeo write it, or a docker archive as of docker
save, without compression, with gzip or with zstd. Everything is verified as in a pull, and pods with the
pull policies IfNotPresent and Never find the images.`,
		Args: cli.AtLeast(1, "archives"),
	}, func(ctx context.Context, s *session, args []string) error {
		if name != "" && len(args) > 1 {
			return fmt.Errorf("--name is for one archive, not %d", len(args))
		}

		query := url.Values{"name": {name}, "pin": {fmt.Sprint(pin)}}
		return each(args, func(path string) error { return s.importArchive(ctx, path, query, errs) })
	})
	cmd.PreRun = func(cmd *cobra.Command, _ []string) { errs = cmd.ErrOrStderr() }
	cmd.Flags().StringVar(&name, "name", "", "the `NAME` of the image, if the archive has one image without a name")
	cmd.Flags().BoolVar(&pin, "pin", false, "keep the images from kubelet's garbage collection, until they are removed by name")
	return cmd
}

// importArchive sends an archive to the daemon.
func (s *session) importArchive(ctx context.Context, path string, query url.Values, errs io.Writer) error {
	content, err := openArchive(path)
	if err != nil {
		return err
	}
	defer content.Close()
	return s.sendArchive(ctx, path, content, query, errs)
}

// sendArchive sends the content of an archive, which errors call by its path.
func (s *session) sendArchive(ctx context.Context, path string, content io.Reader, query url.Values, errs io.Writer) error {
	counted := &counter{Reader: content}
	stop := showBytes(ctx, errs, path, &counted.n)

	c := admin.NewClient(s.adminSocket())
	defer c.Close()
	answer, err := c.Send(ctx, http.MethodPost, admin.ImportPath+"?"+query.Encode(), counted)
	stop()
	if err != nil {
		return fmt.Errorf("import %s: %w", path, s.explain(err))
	}
	defer answer.Close()
	var done admin.Import
	if err := json.NewDecoder(answer).Decode(&done); err != nil {
		return fmt.Errorf("import %s: read the daemon's answer: %w", path, err)
	}

	for _, im := range done.Images {
		if _, err := fmt.Fprintln(s.out, im.Name); err != nil {
			return err
		}
	}
	if done.Error != "" {
		return fmt.Errorf("%s: %s", path, done.Error)
	}
	return nil
}

// openArchive opens a file, packs a directory, or reads the standard input.
func openArchive(path string) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(os.Stdin), nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	if !st.IsDir() {
		return os.Open(path)
	}

	if _, err := os.Stat(filepath.Join(path, "index.json")); err != nil {
		return nil, fmt.Errorf("import %s: the directory is no OCI layout: %w", path, err)
	}
	return pack(func(w io.Writer) error { return packDirectory(path, w) }), nil
}

// pack returns the archive that write writes, while it does.
func pack(write func(io.Writer) error) *packing {
	r, w := io.Pipe()
	p := &packing{r, make(chan struct{})}
	go func() {
		defer close(p.done)
		w.CloseWithError(write(w))
	}()
	return p
}

// packing is an archive while it is written.
type packing struct {
	*io.PipeReader
	done chan struct{}
}

// Close ends the writer, and waits for it.
func (p *packing) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}

// packDirectory writes an OCI layout as a tar file. Links do not lead out of it.
func packDirectory(dir string, w io.Writer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	blobs, err := fs.Glob(root.FS(), "blobs/*/*")
	if err != nil {
		return err
	}

	t := tar.NewWriter(w)
	for _, name := range append([]string{"oci-layout", "index.json"}, blobs...) {
		if err := packFile(t, root, name); err != nil {
			return err
		}
	}
	return t.Close()
}

// packFile adds a file to an archive.
func packFile(t *tar.Writer, root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}

	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: st.Size()}); err != nil {
		return err
	}
	_, err = io.CopyN(t, f, st.Size())
	return err
}

// counter counts the bytes that are read.
type counter struct {
	io.Reader
	n atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// showBytes shows on a terminal how much was read, until stop.
func showBytes(ctx context.Context, errs io.Writer, what string, n *atomic.Int64) (stop func()) {
	began := time.Now()
	return redraw(ctx, errs, func() string {
		read, took := n.Load(), time.Since(began).Seconds()
		return fmt.Sprintf("%s: %s, %s/s", what, bytesOf(uint64(read)), bytesOf(uint64(float64(read)/max(took, .001))))
	})
}

// exportCommand is the command images export.
func exportCommand() *cobra.Command {
	output := ""
	cmd := withDaemon(&cobra.Command{
		Use: "export [--output FILE] [FLAGS] IMAGE...", Short: "Write an archive of images",
		Long: `Write an archive of images, which crisp images import, ctr, podman and docker can
read: an OCI layout with the manifest.json of docker save, as a tar file. It has what
this machine's platform needs. It goes to the standard output unless that is a
terminal.`,
		Args: cli.AtLeast(1, "images"),
	}, func(ctx context.Context, s *session, args []string) error {
		if f, ok := s.out.(*os.File); ok && output == "" && term.IsTerminal(int(f.Fd())) {
			return errors.New("the archive is not printed on a terminal: name a file (--output FILE), or redirect the output")
		}

		return s.export(ctx, args, func(answer io.Reader) error {
			if output != "" && output != "-" {
				return save(output, answer)
			}
			_, err := io.Copy(s.out, answer)
			return cutShort(err)
		})
	})
	cmd.Flags().StringVarP(&output, "output", "o", "", "the `FILE` to write, which must not exist")
	return cmd
}

// export asks the daemon for an archive of images, and writes it.
func (s *session) export(ctx context.Context, images []string, write func(io.Reader) error) error {
	for _, ref := range images { // a name that does not exist has an exit code of its own
		if err := s.exists(ctx, ref); err != nil {
			return err
		}
	}
	c := admin.NewClient(s.adminSocket())
	defer c.Close()
	answer, err := c.Do(ctx, http.MethodGet, admin.ExportPath+"?"+url.Values{"ref": images}.Encode())
	if err != nil {
		return s.explain(err)
	}
	defer answer.Close()
	return write(answer)
}

// save writes an archive to a new file, or leaves none.
func save(path string, content io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(cutShort(err), f.Close()); err != nil {
		err = errors.Join(fmt.Errorf("write archive %s: %w", path, err), os.Remove(path))
	}
	return err
}

// cutShort explains the error of an archive that the daemon could not complete.
func cutShort(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the daemon could not complete the archive, see its log: %w", err)
	}
	return err
}

// gcCommand is the command images gc.
func gcCommand() *cobra.Command {
	dry, age := false, 2*time.Minute
	cmd := listing(&cobra.Command{
		Use: "gc [--dry-run] [FLAGS]", Short: "Remove images that nothing uses",
		Long: `Remove images that no container has, running or ended, and that are not pinned, with
the partial downloads of interrupted pulls, and print them with the disk space that
only they use. Images that were pulled lately stay: a container may be about to be
created.`,
		Args: cli.Exactly(0, "no arguments"),
	}, func(ctx context.Context, s *session, f format, _ []string) error {
		c := admin.NewClient(s.adminSocket())
		defer c.Close()
		answer, err := c.Do(ctx, http.MethodPost, fmt.Sprintf("%s?dry=%t&age=%s", admin.CollectPath, dry, age))
		if err != nil {
			return s.explain(err)
		}
		defer answer.Close()
		var done admin.Collected
		if err := json.NewDecoder(answer).Decode(&done); err != nil {
			return fmt.Errorf("read the daemon's answer: %w", err)
		}

		err = f.print(s.out, done, func() *table { return collectedTable(done) })
		if done.Error != "" {
			err = errors.Join(err, errors.New(done.Error))
		}
		return err
	})
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be removed")
	cmd.Flags().DurationVar(&age, "age", age, "keep what was pulled in the last `DURATION`")
	return cmd
}

func collectedTable(done admin.Collected) *table {
	t := newTable("IMAGE", "FREES", "ID")
	for _, im := range done.Images {
		t.add(im.Name, bytesOf(im.Exclusive), client.Short(strings.TrimPrefix(im.ID, "sha256:")))
	}
	return t
}
