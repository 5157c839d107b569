package cri

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/pod"
	"crisp/image"
	"crisp/runtime/untrusted"
)

// PullImage pulls an image and returns its ID.
func (s *Server) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := r.GetImage().GetImage()
	if h := r.GetImage().GetRuntimeHandler(); h != "" && !s.Pods.HasHandler(h) {
		return nil, fmt.Errorf("pull %s: %w: no runtime handler %q", ref, pod.ErrInvalid, h)
	}
	img, err := s.Images.Pull(ctx, ref, auth(r.GetAuth()))
	if of := r.GetSandboxConfig().GetMetadata(); of != nil { // people ask why that pod does not run
		s.Pods.NotePull(of, ref, err)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

func auth(a *runtimeapi.AuthConfig) *image.Auth {
	if a == nil {
		return nil
	}
	return &image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(),
		ServerAddress: a.GetServerAddress(), IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
}

// ListImages lists all images, or the one that the filter names.
func (s *Server) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.listImages(r.GetFilter())
	return &runtimeapi.ListImagesResponse{Images: images}, err
}

// StreamImages lists images in batches.
func (s *Server) StreamImages(r *runtimeapi.StreamImagesRequest, out runtimeapi.ImageService_StreamImagesServer) error {
	images, err := s.listImages(r.GetFilter())
	if err != nil {
		return err
	}
	return batches(images, func(items []*runtimeapi.Image) error {
		return out.Send(&runtimeapi.StreamImagesResponse{Images: items})
	})
}

func (s *Server) listImages(f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	list := s.Images.List()
	if ref := f.GetImage().GetImage(); ref != "" {
		img, err := s.Images.Get(ref)
		if errors.Is(err, image.ErrNotFound) {
			return []*runtimeapi.Image{}, nil
		}
		if err != nil {
			return nil, err
		}
		list = []image.Image{img}
	}

	out := make([]*runtimeapi.Image, 0, len(list))
	for _, img := range list {
		out = append(out, criImage(img))
	}
	return out, nil
}

// ImageStatus describes an image. A missing image is an empty response, not an
// error.
func (s *Server) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, err := s.Images.Get(r.GetImage().GetImage())
	if errors.Is(err, image.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}

	out := &runtimeapi.ImageStatusResponse{Image: criImage(img)}
	if !r.GetVerbose() {
		return out, nil
	}

	if img, err = s.Images.Details(ctx, img.ID); err != nil {
		return nil, err
	}
	out.Info, err = verbose(map[string]any{"info": struct {
		image.Image
		ChainID   string        `json:"chainID"`
		ImageSpec ocispec.Image `json:"imageSpec"`
	}{img, topLayer(img), img.Config}})

	return out, err
}

// topLayer is the chain ID of an image's uppermost layer, "" if it has none.
func topLayer(img image.Image) string {
	if len(img.ChainIDs) == 0 {
		return ""
	}
	return img.ChainIDs[len(img.ChainIDs)-1].String()
}

// maxUser bounds the length of a user name.
const maxUser = 256

// criImage converts an image. Only the part of its user before the colon is
// reported, as a UID if it is a number.
func criImage(img image.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: img.Size, Pinned: img.Pinned,
		Spec: &runtimeapi.ImageSpec{Image: img.ID},
	}
	user, _, _ := strings.Cut(img.Config.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		out.Username = untrusted.Of(user).Text(maxUser)
	}
	return out
}

// RemoveImage removes an image with all its tags.
func (s *Server) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := s.Images.Remove(ctx, r.GetImage().GetImage()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo reports the disk usage of images and containers.
func (s *Server) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	info, err := s.Images.FsInfo()
	if err != nil {
		return nil, err
	}
	usage := []*runtimeapi.FilesystemUsage{{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: info.Mountpoint},
		UsedBytes:  &runtimeapi.UInt64Value{Value: info.UsedBytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: info.InodesUsed},
	}}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: usage, ContainerFilesystems: usage}, nil
}
