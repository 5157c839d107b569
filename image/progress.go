package image

import (
	"slices"
	"strings"
	"sync"
	"time"

	"crisp/runtime/untrusted"
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
	// Asked are the hosts that have not answered yet, the one that is waited for longest
	// first. Host is the one that has answered last, Failed why the last one that
	// could not was given up.
	Asked  []Asked `json:"asked,omitempty"`
	Host   string  `json:"host,omitempty"`
	Failed string  `json:"failed,omitempty"`
}

// Asked is a host that has been asked, and has not answered.
type Asked struct {
	Host  string    `json:"host"`
	Since time.Time `json:"since"`
}

// maxFailed bounds the text of a host's failure, in bytes.
const maxFailed = 512

// progress is that of one pull, while it goes on.
type progress struct {
	ref   string
	began time.Time

	mu     sync.Mutex
	jobs   []*job          // guarded by mu
	asked  map[*Asked]bool // guarded by mu
	host   string          // guarded by mu
	failed string          // guarded by mu
}

// ask notes a request to a host until it is answered.
func (p *progress) ask(host string) (answered func(error)) {
	one := &Asked{Host: host, Since: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked == nil {
		p.asked = map[*Asked]bool{}
	}
	p.asked[one] = true
	return func(err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.asked, one)
		if err != nil {
			p.failed = untrusted.Of(host + ": " + err.Error()).Name(maxFailed)
		} else {
			p.host = host
		}
	}
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
	out := Progress{Ref: p.ref, Began: p.began, Layers: len(p.jobs), Host: p.host, Failed: p.failed}
	for one := range p.asked {
		out.Asked = append(out.Asked, *one)
	}

	slices.SortFunc(out.Asked, func(a, b Asked) int { return a.Since.Compare(b.Since) })
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
