package registry

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// plain is an answer's body without the content codings that a proxy has put
// on, though nobody asked for any. Only gzip is undone: the window of zstd is
// memory of the answer's choice, which no budget counts here.
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
			return nil, fmt.Errorf("undo content coding: %w", err)
		}
	}

	return body, nil
}

// isCoded reports whether an answer's bytes are not those of a blob of a
// size. Stores of files give the coding of what they store as that of the
// answer: a blob that is packed itself comes as it is.
func isCoded(resp *http.Response, size int64) bool {
	coding := strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Encoding")))
	return coding != "" && coding != "identity" && resp.ContentLength != size
}
