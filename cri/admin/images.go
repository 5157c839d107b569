package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"k8s.io/klog/v2"

	"crisp/cri/pod"
	"crisp/image"
)

// Import is what was imported of an archive, and why the rest was not.
type Import struct {
	Images []image.Imported `json:"images"`
	Error  string           `json:"error,omitempty"`
}

// importImages imports the archive that a client sends.
func (s *Server) importImages(w http.ResponseWriter, r *http.Request) {
	// An archive that is refused is not read to its end.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	out := Import{Images: []image.Imported{}}
	query := r.URL.Query() // the body is no form
	list, err := s.Images.Import(r.Context(), r.Body, image.ImportOptions{Name: query.Get("name"), Pin: query.Get("pin") == "true"})
	out.Images = append(out.Images, list...)
	if err != nil {
		out.Error = err.Error()
	}
	klog.InfoS("Imported images", "images", len(list), "err", err)
	reply(w, out)
}

// exportImages sends an archive of images. If that fails in the middle, the connection
// breaks off.
func (s *Server) exportImages(w http.ResponseWriter, r *http.Request) {
	out := &begun{ResponseWriter: w}
	err := s.Images.Export(r.Context(), r.URL.Query()["ref"], out)
	switch {
	case err == nil:
	case !out.yes && (errors.Is(err, image.ErrNotFound) || errors.Is(err, image.ErrInvalidReference)):
		http.Error(w, err.Error(), http.StatusNotFound)
	case !out.yes:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		klog.ErrorS(err, "Could not export images")
		panic(http.ErrAbortHandler) // what the package has for this
	}
}

// begun knows whether something was sent.
type begun struct {
	http.ResponseWriter
	yes bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.yes = true
	return b.ResponseWriter.Write(p)
}

// Collected is what was removed, or would be.
type Collected struct {
	Images []image.ImageDisk `json:"images"`
	// Freed is the disk space in bytes, at least: what several removed images share
	// counts for none of them.
	Freed uint64 `json:"freed"`
	Error string `json:"error,omitempty"`
}

// collectImages removes images that nothing uses.
func (s *Server) collectImages(w http.ResponseWriter, r *http.Request, m *pod.Manager) {
	age, err := time.ParseDuration(r.FormValue("age"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reply(w, s.collect(r.Context(), m, age, r.FormValue("dry") == "true"))
}

// collect removes images that no container has, that are not pinned, and that were not
// pulled within an age: a container of theirs may be about to be created.
func (s *Server) collect(ctx context.Context, m *pod.Manager, age time.Duration, dry bool) Collected {
	out := Collected{Images: []image.ImageDisk{}}
	for _, im := range s.Images.Disk().Images {
		if im.Pinned || time.Since(im.Since) < age || usedImages(m)[im.ID] {
			continue
		}
		if !dry {
			if err := s.Images.Remove(ctx, im.ID); err != nil {
				out.Error = fmt.Sprintf("remove %s: %v", im.Name, err)
				break
			}
			klog.InfoS("Removed an image that nothing uses", "image", im.Name, "id", im.ID)
		}
		out.Images = append(out.Images, im)
		out.Freed += im.Exclusive
	}
	return out
}

// usedImages are the IDs of the images that containers have, those that have ended
// included.
func usedImages(m *pod.Manager) map[string]bool {
	used := map[string]bool{}
	for _, r := range m.Sandboxes() {
		for _, c := range r.Containers {
			used[c.ImageID] = true
			for _, v := range c.ImageVolumes {
				used[v.ImageID] = true
			}
		}
	}
	return used
}
