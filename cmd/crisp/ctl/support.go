package ctl

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cmd/crisp/doctor"
	"crisp/cri/admin"
	"crisp/cri/config"
	"crisp/runtime/ordinary"
)

// SupportCommand is the command support; examine checks what a configuration refers
// to.
func SupportCommand(version string, examine func(*config.Config) error) *cobra.Command {
	output := ""
	cmd := cli.Configured(&cobra.Command{
		Use: "support [--output FILE] [FLAGS]", Short: "Write an archive for those who are to help",
		Long: `Write an archive for those who are to help: versions, configuration, the daemon's
state and goroutines, the disk usage, the findings of crisp doctor, and the journals
of crisp and crisp-keeper. It has names of pods and images, but no environments,
annotations, credentials and files of containers. It also works without a daemon.`,
		Args: cli.Exactly(0, "no arguments"), DisableFlagsInUseLine: true,
	}, func(ctx context.Context, cfg *config.Config, _ []string, out io.Writer) error {
		path := cmp.Or(output, "crisp-support-"+time.Now().UTC().Format("20060102T150405Z")+".tar.gz")
		if err := writeSupport(ctx, path, version, cfg, examine); err != nil {
			return err
		}

		_, err := fmt.Fprintln(out, path)
		return err
	})
	cmd.Flags().StringVarP(&output, "output", "o", "", "the `FILE` to write, which must not exist")
	return cmd
}

// maxJournal bounds the lines of a journal.
const maxJournal = "5000"

// writeSupport writes the archive. What cannot be had is in it as an error: an archive
// with gaps helps, too.
func writeSupport(ctx context.Context, path, version string, cfg *config.Config, examine func(*config.Config) error) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	z := gzip.NewWriter(f)
	a := &archive{tar: tar.NewWriter(z), now: time.Now()}
	defer func() {
		err = errors.Join(err, a.tar.Close(), z.Close(), f.Close())
		if err != nil {
			err = errors.Join(fmt.Errorf("write archive %s: %w", path, err), os.Remove(path))
		}
	}()

	daemon := admin.NewClient(nodeSocket(cfg))
	defer daemon.Close()
	ask := func(path string) func() ([]byte, error) {
		return func() ([]byte, error) {
			answer, err := daemon.Do(ctx, http.MethodGet, path)
			if err != nil {
				return nil, err
			}
			defer answer.Close()
			return io.ReadAll(answer)
		}
	}
	journal := func(unit string) func() ([]byte, error) {
		return func() ([]byte, error) {
			return output(ctx, "journalctl", "--no-pager", "--lines="+maxJournal, "--unit="+unit)
		}
	}

	for _, part := range []struct {
		name string
		make func() ([]byte, error)
	}{
		{"versions.txt", func() ([]byte, error) { return versions(version) }},
		{"configuration.json", func() ([]byte, error) { return json.MarshalIndent(cfg, "", "  ") }},
		{"doctor.json", func() ([]byte, error) {
			return json.MarshalIndent(doctor.Examine(ctx, nodeOf(cfg, examine), false), "", "  ")
		}},
		{"state.json", ask(admin.StatePath)}, {"disk.json", ask(admin.DiskPath)}, {"goroutines.txt", ask(admin.GoroutinesPath)},
		{"mounts.txt", func() ([]byte, error) { return os.ReadFile("/proc/self/mountinfo") }},
		{"journal-crisp.txt", journal("crisp.service")}, {"journal-keeper.txt", journal("crisp-keeper.service")},
	} {
		if err := a.add(part.name, part.make); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// archive is a tar file that is being written.
type archive struct {
	tar *tar.Writer
	now time.Time
}

// add adds a file, or the reason why it cannot be had.
func (a *archive) add(name string, make func() ([]byte, error)) error {
	data, err := make()
	if err != nil {
		name, data = name+".error", []byte(err.Error()+"\n")
	}
	header := &tar.Header{Name: "crisp-support/" + name, Mode: 0o600, Size: int64(len(data)), ModTime: a.now, Format: tar.FormatPAX}
	if err := a.tar.WriteHeader(header); err != nil {
		return err
	}
	_, err = a.tar.Write(data)
	return err
}

// versions are those of what runs here.
func versions(version string) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "crisp %s, %s, %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, path := range []string{"/proc/version", "/etc/os-release"} {
		data, err := os.ReadFile(path)
		if err != nil {
			data = []byte(err.Error() + "\n")
		}
		fmt.Fprintf(&b, "\n%s:\n%s", path, data)
	}
	return b.Bytes(), nil
}

// journalTime bounds the wait for a journal.
const journalTime = 30 * time.Second

// output is that of a program of the node.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, journalTime)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout = &out
	if err := ordinary.Start(cmd); err != nil {
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	return out.Bytes(), nil
}
