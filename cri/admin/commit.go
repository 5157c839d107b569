package admin

import (
	"net/http"
	"time"

	"k8s.io/klog/v2"

	"crisp/cri/pod"
	"crisp/image"
)

// Committed is the image that was made of a container, or why there is none.
type Committed struct {
	image.Imported
	Error string `json:"error,omitempty"`
}

// commit makes an image of a container.
func (s *Server) commit(w http.ResponseWriter, r *http.Request, m *pod.Manager) {
	limit, err := time.ParseDuration(r.FormValue("limit"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}

	id := r.FormValue("container")
	im, err := m.CommitContainer(r.Context(), id, pod.Commit{
		Name: r.FormValue("name"), Comment: r.FormValue("comment"),
		Pin: r.FormValue("pin") == "true", Live: r.FormValue("live") == "true", Limit: limit,
	})
	klog.InfoS("Committed a container", "container", id, "image", r.FormValue("name"), "id", im.ID, "err", err)
	if err != nil {
		reply(w, Committed{Error: err.Error()})
		return
	}
	reply(w, Committed{Imported: image.Imported{Name: image.FullName(r.FormValue("name")), ID: im.ID}})
}
