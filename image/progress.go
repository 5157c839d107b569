package image

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// Progress is how far a pull is.
type Progress struct {
	// Ref is what is pulled, since Began.
	Ref   string    `json:"ref"`
	Began time.Time `json:"began"`
	// Layers of the image, and how many of them are present; zero until the
	// registry has said.
	Layers  int `json:"layers"`
	Present int `json:"present"`
	// Size of all layers as the registry has them, and how much of that is here,
	// both in bytes.
	Size  int64 `json:"size"`
	Bytes int64 `json:"bytes"`
}

// progress is that of one pull, while it goes on.
type progress struct {
	ref   string
	began time.Time

	mu   sync.Mutex
	jobs []*job // guarded by mu
}

// plan sets the layers. A pull that is not watched has no progress.
func (p *progress) plan(jobs []*job) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.jobs = jobs
}

func (p *progress) now() Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := Progress{Ref: p.ref, Began: p.began, Layers: len(p.jobs)}
	for _, j := range p.jobs {
		out.Size += j.desc.Size
		select {
		case <-j.ready:
			out.Present++
			out.Bytes += j.desc.Size
		default:
			out.Bytes += min(j.got.Load(), j.desc.Size)
		}
	}
	return out
}

// Pulls lists the pulls in progress, by what they pull.
func (s *Service) Pulls() []Progress {
	list := []Progress{}
	s.pulls.mu.Lock()
	for _, op := range s.pulls.all {
		list = append(list, op.progress.now())
	}
	s.pulls.mu.Unlock()
	slices.SortFunc(list, func(a, b Progress) int { return strings.Compare(a.Ref, b.Ref) })
	return list
}
