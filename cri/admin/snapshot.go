package admin

import (
	"net/http"
	"time"

	"k8s.io/klog/v2"

	"crisp/cri/pod"
)

// Done is the answer to a request that changes something: what it made, or why it failed.
type Done struct {
	// ID is that of a pod, if one was made.
	ID    string `json:"id,omitempty"`
	Error string `json:"error,omitempty"`
}

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
		reply(w, done("", err))
	}))

	mux.HandleFunc("DELETE "+SnapshotsPath, s.withPods(func(w http.ResponseWriter, r *http.Request, m *pod.Manager) {
		err := m.RemoveSnapshot(r.Context(), r.FormValue("name"))
		klog.InfoS("Removed a snapshot", "snapshot", r.FormValue("name"), "err", err)
		reply(w, done("", err))
	}))

	mux.HandleFunc("POST "+ClonePath, s.withPods(func(w http.ResponseWriter, r *http.Request, m *pod.Manager) {
		id, err := m.Clone(r.Context(), r.FormValue("snapshot"), r.FormValue("name"))
		klog.InfoS("Cloned a snapshot", "snapshot", r.FormValue("snapshot"), "name", r.FormValue("name"), "pod", id, "err", err)
		reply(w, done(id, err))
	}))
}

func done(id string, err error) Done {
	if err != nil {
		return Done{Error: err.Error()}
	}
	return Done{ID: id}
}

// withPods answers a request that needs the pods.
func (s *Server) withPods(answer func(http.ResponseWriter, *http.Request, *pod.Manager)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		m := s.pods.Load()
		if m == nil {
			http.Error(w, "the daemon is starting, and does not know yet what pods there are", http.StatusServiceUnavailable)
			return
		}
		answer(w, r, m)
	}
}
