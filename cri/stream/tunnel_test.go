package stream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	clientforward "k8s.io/client-go/tools/portforward"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/network/portforward"
)

// TestPortForwardThroughATunnel forwards ports as crictl does with
// --transport websocket: by client-go's SPDY within a WebSocket.
func TestPortForwardThroughATunnel(t *testing.T) {
	port := echoServer(t)
	s := start(t, Options{}, fake{forward: func(ctx context.Context, pod string, to int32, stream io.ReadWriteCloser) error {
		if pod != "p1" {
			return fmt.Errorf("pod %q", pod)
		}
		return portforward.Forward(ctx, nil, int(to), stream)
	}})

	resp, err := s.GetPortForward(nil, &runtimeapi.PortForwardRequest{PodSandboxId: "p1"})
	if err != nil {
		t.Fatal(err)
	}

	at, err := url.Parse(resp.Url)
	if err != nil {
		t.Fatal(err)
	}

	dialer, err := clientforward.NewSPDYOverWebsocketDialerForStreaming(at, &rest.Config{})
	if err != nil {
		t.Fatal(err)
	}

	conn, protocol, err := dialer.Dial("portforward.k8s.io")
	if err != nil || protocol != "portforward.k8s.io" {
		t.Fatalf("dial: protocol %q, %v", protocol, err)
	}

	c := sessionOn(t, conn)
	c.wantEchoes(port, 100_000)
	data, failure := c.forward(1, 100)
	data.Close()

	if said, err := io.ReadAll(failure); err != nil || !strings.Contains(string(said), "refused") {
		t.Errorf("a port without a server gives %q, %v", said, err)
	}
}

// TestTunnelOfAnotherProtocol is refused before anything is changed.
func TestTunnelOfAnotherProtocol(t *testing.T) {
	s := start(t, Options{}, fake{})
	resp, err := s.GetPortForward(nil, &runtimeapi.PortForwardRequest{PodSandboxId: "p1"})
	if err != nil {
		t.Fatal(err)
	}

	req, err := http.NewRequest(http.MethodGet, resp.Url, nil)
	if err != nil {
		t.Fatal(err)
	}

	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
		"Sec-WebSocket-Protocol": "SPDY/3.1+other.k8s.io",
	} {
		req.Header.Set(name, value)
	}

	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()

	if answer.StatusCode < 400 || answer.StatusCode >= 500 {
		t.Errorf("answered with %s", answer.Status)
	}
}
