package client

import (
	"context"
	"errors"
	"fmt"

	"crisp/runtime/wire"
)

// Ping waits until the keeper answers a request that changes nothing.
func (c *Client) Ping(ctx context.Context) error {
	// Nothing has this ID: any answer will do.
	err := c.simple(ctx, "keeper ping", wire.Forget{}, outgoing{})
	var refused wire.Fail
	if err == nil || errors.As(err, &refused) {
		return nil
	}
	return fmt.Errorf("ask the keeper: %w", err)
}

// PID is the keeper's process, 0 if it is not known.
func (c *Client) PID() int { return c.pid }
