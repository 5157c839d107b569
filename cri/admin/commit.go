package admin

import (
	"net/http"
	"time"

	"k8s.io/klog/v2"

	"crisp/cri/pod"
	"crisp/image"
)

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
	reply(w, done(Done{ID: im.ID, Name: image.FullName(r.FormValue("name"))}, err))
}
