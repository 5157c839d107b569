package admin

import (
	"net/http"
	"time"

	"k8s.io/klog/v2"

	"crisp/cri/pod"
)

// registerSnapshots adds the requests about snapshots.
func (s *Server) registerSnapshots(mux *http.ServeMux) {
	mux.HandleFunc("GET "+SnapshotsPath, s.withPods(func(w http.ResponseWriter, _ *http.Request, m *pod.Manager) {
		list, err := m.Snapshots()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		reply(w, append([]pod.Snapshot{}, list...))
	}))

	mux.HandleFunc("POST "+SnapshotsPath, s.withPods(func(w http.ResponseWriter, r *http.Request, m *pod.Manager) {
		limit, err := time.ParseDuration(r.FormValue("limit"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		id, name := r.FormValue("pod"), r.FormValue("name")
		err = m.TakeSnapshot(r.Context(), id, name, limit)
		klog.InfoS("Took a snapshot", "pod", id, "snapshot", name, "err", err)
		reply(w, done(Done{}, err))
	}))

	mux.HandleFunc("DELETE "+SnapshotsPath, s.withPods(func(w http.ResponseWriter, r *http.Request, m *pod.Manager) {
		err := m.RemoveSnapshot(r.Context(), r.FormValue("name"))
		klog.InfoS("Removed a snapshot", "snapshot", r.FormValue("name"), "err", err)
		reply(w, done(Done{}, err))
	}))

	mux.HandleFunc("POST "+ClonePath, s.withPods(func(w http.ResponseWriter, r *http.Request, m *pod.Manager) {
		id, err := m.Clone(r.Context(), r.FormValue("snapshot"), pod.CloneOptions{Name: r.FormValue("name"), Merge: r.FormValue("merge") == "true"})
		klog.InfoS("Cloned a snapshot", "snapshot", r.FormValue("snapshot"), "name", r.FormValue("name"), "pod", id, "err", err)
		reply(w, done(Done{ID: id}, err))
	}))
}
