package ctl

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/client"
	"crisp/cri/rpcerr"
)

// Image is an image in the output of crisp images.
type Image struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags"`
	Digests []string `json:"digests"`
	Size    uint64   `json:"size"`
	Pinned  bool     `json:"pinned"`
}

// ImagesCommand makes a group of commands about images list them.
func ImagesCommand(group *cobra.Command) *cobra.Command {
	below := group.RunE
	list := imagesListing(group).RunE
	group.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return below(cmd, args)
		}
		return list(cmd, args)
	}
	group.AddCommand(imagesListing(&cobra.Command{
		Use: "list [FLAGS]", Short: "List images, as crisp images does", Args: cli.Exactly(0, "no arguments"),
	}))
	return group
}

// imagesListing makes a command list images.
func imagesListing(cmd *cobra.Command) *cobra.Command {
	quiet := false
	listing(cmd, func(ctx context.Context, s *session, f format, _ []string) error {
		list, err := s.images(ctx)
		if err != nil {
			return err
		}
		if quiet {
			return printIDs(s, list, func(i Image) string { return i.ID })
		}
		return f.print(s.out, list, func() *table { return imageTable(list, f.wide()) })
	})
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	return cmd
}

// images lists all images, by name.
func (s *session) images(ctx context.Context) ([]Image, error) {
	r, err := s.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %s", rpcerr.Message(err))
	}
	list := []Image{}
	for _, i := range r.GetImages() {
		list = append(list, Image{
			ID: i.GetId(), Tags: append([]string{}, i.GetRepoTags()...), Digests: append([]string{}, i.GetRepoDigests()...),
			Size: i.GetSize(), Pinned: i.GetPinned(),
		})
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.name()+a.ID, b.name()+b.ID) })
	return list, nil
}

// name is the image's first one.
func (i Image) name() string {
	if names := slices.Concat(i.Tags, i.Digests); len(names) > 0 {
		return names[0]
	}
	return ""
}

func imageTable(list []Image, wide bool) *table {
	columns := []string{"IMAGE", "SIZE", "ID"}
	if wide {
		columns = append(columns, "PINNED", "DIGESTS")
	}
	t := newTable(columns...)
	for _, i := range list {
		names := i.Tags
		if len(names) == 0 {
			names = []string{i.name()}
		}

		for _, name := range names {
			id := strings.TrimPrefix(i.ID, "sha256:")
			row := []string{name, bytesOf(i.Size), client.Short(id)}
			if wide {
				row[len(row)-1] = id
				row = append(row, fmt.Sprint(i.Pinned), strings.Join(i.Digests, ","))
			}
			t.add(row...)
		}
	}
	return t
}

// exists requires that there is an image.
func (s *session) exists(ctx context.Context, ref string) error {
	st, err := s.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		return fmt.Errorf("status of image %s: %s", ref, rpcerr.Message(err))
	}
	if st.GetImage() == nil {
		return fmt.Errorf("%w: there is no image %s", client.ErrNotFound, ref)
	}
	return nil
}

// rmiCommand is the command rmi.
func rmiCommand() *cobra.Command {
	return withDaemon(&cobra.Command{
		Use: "rmi [FLAGS] IMAGE...", Short: "Remove images",
		Long: `Remove images, or names of them: an image goes with its last tag. Layers that
containers use stay until those are removed.`,
		Args: cli.AtLeast(1, "images"),
	}, func(ctx context.Context, s *session, args []string) error {
		return each(args, func(ref string) error {
			image := &runtimeapi.ImageSpec{Image: ref}
			if err := s.exists(ctx, ref); err != nil {
				return err
			}

			if _, err := s.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: image}); err != nil {
				return fmt.Errorf("remove image %s: %s", ref, rpcerr.Message(err))
			}
			_, err := fmt.Fprintln(s.out, ref)
			return err
		})
	})
}
