package admin

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime"
	rpprof "runtime/pprof"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"crisp/cri/pod"
	"crisp/image"
	"crisp/network/cni"
	"crisp/runtime/host"
)

// Socket is the name of the socket in the state directory.
const Socket = "admin.sock"

// Paths of requests.
const (
	StatePath      = "/state"
	ReportPath     = "/report" // of the pod ?name=NAMESPACE/NAME or ?id=ID
	PullsPath      = "/pulls"
	DiskPath       = "/disk"
	GoroutinesPath = "/goroutines"
	ImportPath     = "/images/import" // the archive in the body, ?name=NAME for an image without one, ?pin=true
	ExportPath     = "/images/export" // ?ref=IMAGE for each image
	PushPath       = "/images/push"   // ?name=IMAGE, &try=true to push nothing; an image.Auth in the body, or none
	CommitPath     = "/commit"        // ?container=ID&name=IMAGE, &comment=TEXT, &pin=true, &live=true, &limit=DURATION
	SnapshotsPath  = "/snapshots"     // GET lists, POST ?pod=ID&name=NAME&limit=DURATION takes one, DELETE ?name=NAME
	ClonePath      = "/clone"         // ?snapshot=NAME&name=POD
	MigratePath    = "/migrate"       // ?pod=ID&node=NAME&limit=DURATION, &address=true, &settle=true; a conversation of package move
	ReceivePath    = "/receive"       // a conversation of package move
	CollectPath    = "/images/gc"     // ?age=DURATION since the last pull, ?dry=true
	ProfilePath    = "/debug/pprof/"
)

// Server answers requests. Pods are set once they are open.
type Server struct {
	Version      string
	Images       *image.Service
	Facts        host.Facts
	CgroupDriver string
	// Root is the directory of images and records.
	Root string
	// Plugins lists the calls of network plugins that go on for a pod; it is set
	// before the pods are.
	Plugins func(sandboxID string) []cni.Running

	began time.Time
	pods  atomic.Pointer[pod.Manager]
}

// SetPods has the server answer for pods, too.
func (s *Server) SetPods(m *pod.Manager) { s.pods.Store(m) }

// Register adds the requests to a server.
func (s *Server) Register(mux *http.ServeMux) {
	s.began = time.Now()
	mux.HandleFunc("GET "+StatePath, func(w http.ResponseWriter, _ *http.Request) { reply(w, s.State()) })
	mux.HandleFunc("GET "+ReportPath, func(w http.ResponseWriter, r *http.Request) {
		reply(w, s.Report(r.FormValue("name"), r.FormValue("id")))
	})
	mux.HandleFunc("GET "+PullsPath, func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Images.Pulls()) })
	mux.HandleFunc("GET "+DiskPath, func(w http.ResponseWriter, r *http.Request) { reply(w, s.Disk(r.Context())) })
	mux.HandleFunc("POST "+ImportPath, s.importImages)
	mux.HandleFunc("GET "+ExportPath, s.exportImages)
	mux.HandleFunc("POST "+PushPath, s.push)
	mux.HandleFunc("POST "+CollectPath, s.withPods(s.collectImages))
	mux.HandleFunc("POST "+CommitPath, s.withPods(s.commit))
	s.registerSnapshots(mux)
	s.registerMoves(mux)
	mux.HandleFunc("GET "+GoroutinesPath, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(goroutines())
	})

	mux.HandleFunc("GET "+ProfilePath, pprof.Index)
	mux.HandleFunc("GET "+ProfilePath+"profile", pprof.Profile)
	mux.HandleFunc("GET "+ProfilePath+"trace", pprof.Trace)
}

// reply sends an object. A client that does not wait for it is not told.
func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		klog.V(2).InfoS("Could not answer a command", "err", err)
	}
}

// goroutines are the stacks of all goroutines.
func goroutines() []byte {
	var b bytes.Buffer
	const withStates = 2
	_ = rpprof.Lookup("goroutine").WriteTo(&b, withStates) // a buffer takes all
	return b.Bytes()
}

// Dump logs the state and all goroutines, each as a line of its own: a journal cuts
// long ones.
func (s *Server) Dump() {
	state := s.State()
	klog.InfoS("State of the daemon", "version", state.Version, "pid", state.PID, "goroutines", state.Goroutines, "descriptors", state.Descriptors,
		"memoryBytes", state.MemoryBytes, "pods", len(state.Pods), "operations", len(state.Operations), "pulls", len(state.Pulls))

	for _, p := range state.Pods {
		klog.InfoS("State of a pod", "pod", p.Name, "id", p.ID, "phase", p.Phase, "reason", p.Reason, "containers", p.Containers)
	}
	for _, op := range state.Operations {
		klog.InfoS("Operation under way", "operation", op.What, "pod", op.Pod, "container", op.Container, "began", op.Began, "stage", op.Stage, "stageBegan", op.StageBegan)
	}
	for _, p := range state.Pulls {
		klog.InfoS("Pull under way", "image", p.Ref, "began", p.Began, "layers", p.Layers, "present", p.Present, "bytes", p.Bytes, "size", p.Size)
	}
	for g := range strings.SplitSeq(strings.TrimSpace(string(goroutines())), "\n\n") {
		klog.InfoS("Goroutine", "stack", g)
	}
}

// State is a daemon's.
type State struct {
	Version      string    `json:"version"`
	Go           string    `json:"go"`
	PID          int       `json:"pid"`
	Began        time.Time `json:"began"`
	Kernel       string    `json:"kernel"`
	CgroupDriver string    `json:"cgroupDriver"`
	Goroutines   int       `json:"goroutines"`
	Descriptors  int       `json:"descriptors"`
	// MemoryBytes is what the daemon's heap and stacks have from the kernel.
	MemoryBytes uint64 `json:"memoryBytes"`
	// Ready is false until pods are open; Keeper is why none can be started.
	Ready  bool   `json:"ready"`
	Keeper string `json:"keeper,omitempty"`

	Pods       []Pod            `json:"pods"`
	Operations []pod.Operation  `json:"operations"`
	History    []pod.Event      `json:"history"`
	Pulls      []image.Progress `json:"pulls"`
	// Registries are the hosts that images are named after, at most 20.
	Registries []string `json:"registries"`
}

// maxRegistries bounds the hosts in a state.
const maxRegistries = 20

// registriesOf are the hosts that images are named after, in any order.
func registriesOf(images []image.Image) []string {
	hosts := map[string]bool{}
	for _, im := range images {
		for _, name := range append(slices.Clip(im.RepoTags), im.RepoDigests...) {
			if host, _, ok := strings.Cut(name, "/"); ok && len(hosts) < maxRegistries {
				hosts[host] = true
			}
		}
	}
	return slices.AppendSeq([]string{}, maps.Keys(hosts))
}

// State returns the state of the daemon.
func (s *Server) State() State {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	out := State{
		Version: s.Version, Go: runtime.Version(), PID: os.Getpid(), Began: s.began, Kernel: s.Facts.Kernel.String(), CgroupDriver: s.CgroupDriver,
		Goroutines: runtime.NumGoroutine(), Descriptors: descriptors(), MemoryBytes: memory.Sys - memory.HeapReleased,
		Pods: []Pod{}, Operations: []pod.Operation{}, History: []pod.Event{}, Pulls: s.Images.Pulls(),
		Registries: registriesOf(s.Images.List()),
	}

	m := s.pods.Load()
	if m == nil {
		return out
	}
	out.Ready = true
	if err := m.Keeping(); err != nil {
		out.Keeper = err.Error()
	}
	// Before the pods, so that one whose creation ends meanwhile is in either list.
	out.Operations, out.History = m.Operations(), m.History()
	for _, r := range m.Sandboxes() {
		out.Pods = append(out.Pods, podOf(r))
	}
	return out
}

// descriptors counts the daemon's.
func descriptors() int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(list)
}
