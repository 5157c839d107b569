package registry

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// plain returns a response's body without content codings, which proxies add even
// though none is accepted. Only gzip is decoded: the response would choose the
// window of zstd, and no budget accounts for that memory here.
func plain(resp *http.Response) (io.Reader, error) {
	body := io.Reader(resp.Body)
	codings := strings.Split(resp.Header.Get("Content-Encoding"), ",")
	if len(codings) > 2 {
		return nil, fmt.Errorf("%w: %d content codings", ErrProtocol, len(codings))
	}

	for i := len(codings) - 1; i >= 0; i-- {
		var err error
		switch coding := strings.ToLower(strings.TrimSpace(codings[i])); coding {
		case "", "identity":
		case "gzip", "x-gzip":
			body, err = gzip.NewReader(body)
		default:
			err = fmt.Errorf("%w: content coding %q", ErrProtocol, clean(coding))
		}
		if err != nil {
			return nil, fmt.Errorf("decode content coding: %w", err)
		}
	}

	return body, nil
}

// isCoded reports whether a response's bytes are an encoded form of a blob of the
// given size. Object stores report the compression of the stored file as the
// content coding: then the length is the blob's, which is sent as it is.
func isCoded(resp *http.Response, size int64) bool {
	coding := strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Encoding")))
	return coding != "" && coding != "identity" && resp.ContentLength != size
}
