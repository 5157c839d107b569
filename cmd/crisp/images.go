package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crisp/cmd/crisp/cli"
	"crisp/cmd/crisp/ctl"
	"crisp/cri/admin"
	"crisp/cri/config"
	"crisp/image"
	"crisp/runtime/host"
)

// checkPath is the request for a check on the admin socket.
const checkPath = "/images/check"

// errDamaged is the error of a check that leaves damage.
var errDamaged = errors.New("images are damaged")

// finding is a line of a check's response: damage, or the result.
type finding struct {
	Damage *image.Damage  `json:"damage,omitempty"`
	Done   *image.Checked `json:"done,omitempty"`
	Error  string         `json:"error,omitempty"`
}

// imagesCommand is the command images.
func imagesCommand() *cobra.Command {
	return cli.Group("images", "List, check, import, export and push images", append(ctl.ArchiveCommands(), imagesCheckCommand())...)
}

// imagesCheckCommand is the command images check.
func imagesCheckCommand() *cobra.Command {
	repair := false
	cmd := cli.Configured(&cobra.Command{
		Use: "check [--repair] [FLAGS]", Short: "Compare the images on disk with their digests",
		Args: cli.Exactly(0, "no arguments"), DisableFlagsInUseLine: true,
	}, func(ctx context.Context, cfg *config.Config, _ []string, out io.Writer) error {
		return checkImages(ctx, cfg, repair, out)
	})
	cmd.Flags().BoolVar(&repair, "repair", false, "fetch or unpack damaged data again, except layers that containers use")
	return cmd
}

// checkImages fails if the check leaves damage.
func checkImages(ctx context.Context, cfg *config.Config, repair bool, out io.Writer) error {
	p := printer{out: out}
	if err := p.check(ctx, cfg, repair); err != nil {
		return err
	}

	if p.done.Damaged > p.done.Repaired {
		return errDamaged
	}
	return nil
}

// printer prints what a check finds.
type printer struct {
	out  io.Writer
	done image.Checked
}

// check has a daemon check its images, or does it itself if there is none.
func (p *printer) check(ctx context.Context, cfg *config.Config, repair bool) error {
	err := p.ask(ctx, filepath.Join(cfg.State, admin.Socket), repair)
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}

	s, err := image.Open(imageOptions(cfg, host.Probe()))
	if err != nil {
		return err
	}

	done, err := s.Check(ctx, repair, p.damage)
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	p.end(done)
	return nil
}

// ask requests a check from the daemon on a socket and follows it.
func (p *printer) ask(ctx context.Context, socket string, repair bool) error {
	client := admin.NewClient(socket)
	defer client.Close()
	answer, err := client.Do(ctx, http.MethodPost, fmt.Sprintf("%s?repair=%t", checkPath, repair))
	if err != nil {
		return err
	}
	defer answer.Close()

	for lines := json.NewDecoder(answer); ; {
		var f finding
		switch err := lines.Decode(&f); {
		case err != nil:
			return fmt.Errorf("the daemon did not complete its check: %w", err)
		case f.Error != "":
			return errors.New(f.Error)
		case f.Done != nil:
			p.end(*f.Done)
			return nil
		case f.Damage != nil:
			p.damage(*f.Damage)
		}
	}
}

func (p *printer) damage(d image.Damage) {
	what := "damaged"
	switch {
	case d.Repaired:
		what = "repaired"
	case d.Remains != "":
		what = "not repaired: " + d.Remains
	}
	fmt.Fprintf(p.out, "%s (%s): %s; %s\n", d.What, strings.Join(d.Images, ", "), d.Why, what)
}

func (p *printer) end(done image.Checked) {
	p.done = done
	fmt.Fprintf(p.out, "%d blobs and %d unpacked layers were checked, %d layers could not be; %d damaged, %d of them repaired\n",
		done.Blobs, done.Layers, done.Unchecked, done.Damaged, done.Repaired)
	if done.Parts > 0 {
		fmt.Fprintf(p.out, "interrupted pulls have left partial downloads of %d layers, %d bytes, which the next pulls resume\n", done.Parts, done.PartBytes)
	}
}

// serveAdmin serves commands until the daemon closes.
func (d *services) serveAdmin() error {
	path := filepath.Join(d.cfg.State, admin.Socket)
	l, err := listen(path)
	if err != nil {
		return err
	}
	// Unlike the CRI's, which a group may be given, it is root's alone.
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(fmt.Errorf("restrict socket: %w", err), l.Close())
	}

	mux := http.NewServeMux()
	d.admin.Register(mux)
	mux.HandleFunc("POST "+checkPath, d.checkImages)
	server := http.Server{Handler: mux, ReadHeaderTimeout: stopTimeout}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			klog.ErrorS(err, "Stopped serving commands")
		}
	}()
	d.onClose(func() {
		if err := server.Close(); err != nil {
			klog.ErrorS(err, "Could not stop serving commands")
		}
		<-done
		d.checking.Lock() // waits for a running check; no other one can start
	})

	return nil
}

// checkImages checks the images for a client, one at a time.
func (d *services) checkImages(w http.ResponseWriter, r *http.Request) {
	if !d.checking.TryLock() {
		http.Error(w, "a check is already running", http.StatusConflict)
		return
	}
	defer d.checking.Unlock()

	answers := json.NewEncoder(w)
	answer := func(f finding) {
		_ = answers.Encode(f) // if the client disconnects the context ends
		_ = http.NewResponseController(w).Flush()
	}

	done, err := d.images.Check(r.Context(), r.FormValue("repair") == "true", func(damage image.Damage) {
		klog.InfoS("Image is damaged", "what", damage.What, "images", damage.Images, "reason", damage.Why, "repaired", damage.Repaired, "remains", damage.Remains)
		answer(finding{Damage: &damage})
	})
	if err != nil {
		answer(finding{Error: err.Error()})
		return
	}
	answer(finding{Done: &done})
}
