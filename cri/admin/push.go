package admin

import (
	"encoding/json"
	"io"
	"net/http"

	"k8s.io/klog/v2"

	"crisp/image"
)

// maxAuth bounds the credentials in a request, in bytes.
const maxAuth = 1 << 20

// push sends an image to its registry, or finds out whether that would take one.
func (s *Server) push(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query() // the body is no form
	name := query.Get("name")
	var auth *image.Auth
	if r.ContentLength != 0 {
		auth = new(image.Auth)
		if err := json.NewDecoder(io.LimitReader(r.Body, maxAuth)).Decode(auth); err != nil {
			// Not what is wrong with it: that may be a part of it.
			http.Error(w, "the credentials cannot be decoded", http.StatusBadRequest)
			return
		}
	}

	if query.Get("try") == "true" {
		reply(w, done(Done{}, s.Images.TryPush(r.Context(), name, auth)))
		return
	}
	out, err := s.Images.Push(r.Context(), name, auth)
	klog.InfoS("Pushed an image", "image", name, "digest", out.Name, "sentBytes", out.Sent, "err", err)
	reply(w, done(Done{Name: out.Name}, err))
}
