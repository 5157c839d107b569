package admin

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crisp/image"
)

// TestPluginsOf finds a descendant by its environment, and no other process.
func TestPluginsOf(t *testing.T) {
	id := strings.Repeat("ab", 32)
	if found := pluginsOf(id); len(found) > 0 {
		t.Errorf("processes %+v before there is one", found)
	}
	cmd := exec.Command("/bin/sh", "-c", "sleep 100 & wait")
	cmd.Env = []string{"CNI_CONTAINERID=" + id, "CNI_COMMAND=DEL\x1b"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, p := range pluginsOf(id) {
			if proc, err := os.FindProcess(p.PID); err == nil {
				proc.Kill()
			}
		}
		cmd.Wait()
	}()

	var found []Process
	for end := time.Now().Add(time.Minute); len(found) < 2 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		found = pluginsOf(id)
	}
	if len(found) != 2 || found[0].PID != cmd.Process.Pid || !strings.HasPrefix(found[0].Command, "/bin/sh -c sleep 100") || found[0].Verb != `DEL\u001b` || found[0].State == "" {
		t.Errorf("processes %+v", found)
	}
	if found := pluginsOf(id[2:]); len(found) > 0 {
		t.Errorf("of another pod: %+v", found)
	}
	if found := processes([]int{os.Getpid(), 1 << 30}); len(found) != 1 || !strings.Contains(found[0].Command, "admin.test") {
		t.Errorf("of this process and none: %+v", found)
	}
}

func TestSizeOfLogs(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"app.log": 10, "app.log.1": 200, "app.log.20260102-030405.gz": 3000, "app2.log": 40000, "app.logs": 500000} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := sizeOfLogs(filepath.Join(dir, "app.log")); got != 3210 {
		t.Errorf("the logs have %d bytes", got)
	}
	if sizeOfLogs("") != 0 || sizeOfLogs("/nowhere/app.log") != 0 {
		t.Error("no log has a size")
	}
}

// TestServer answers before there are pods.
func TestServer(t *testing.T) {
	images, err := image.Open(image.Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	s := &Server{Version: "1.2.3", Images: images, Root: t.TempDir()}
	mux := http.NewServeMux()
	s.Register(mux)

	for path, want := range map[string]string{
		StatePath: `"version":"1.2.3"`, ReportPath + "?name=a/b": `"operations":[]`, PullsPath: "[]", DiskPath: `"containers":[]`,
		GoroutinesPath: "goroutine ", ProfilePath + "heap?debug=1": "heap profile",
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %.200s, want %q", path, w.Code, w.Body, want)
		}
	}
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, StatePath, nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("a POST: %d", w.Code)
	}
	if data, err := json.Marshal(s.State()); err != nil || strings.Contains(string(data), "null") {
		t.Errorf("the state is %s, %v", data, err)
	}
}

// TestHead reads the beginning of a file without an end.
func TestHead(t *testing.T) {
	data, err := head("/dev/zero", maxFile)
	if err != nil || len(data) != maxFile {
		t.Errorf("%d bytes, error %v", len(data), err)
	}
}
