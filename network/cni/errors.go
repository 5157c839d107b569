package cni

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrNoConfig means that a directory contains no network configuration.
	ErrNoConfig = errors.New("no network configuration")
	// ErrInvalidConfig means that the first network configuration of a directory
	// is invalid.
	ErrInvalidConfig = errors.New("invalid network configuration")
	// ErrNoPlugin means that the program of a plugin is missing.
	ErrNoPlugin = errors.New("no such plugin")
)

// PluginError is the failure of a plugin.
type PluginError struct {
	// Plugin and Command name the call: "bridge", "ADD".
	Plugin, Command string
	// Code is an error code of the CNI specification or of the plugin, or 0.
	Code uint
	// Msg and Details are the plugin's error message, or its standard error.
	Msg, Details string
	// Err is set if the plugin returned no valid error: why it could not be run,
	// or how it exited.
	Err error
}

// Error returns the plugin, the command and everything known about the reason.
func (e *PluginError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "plugin %s: %s", e.Plugin, e.Command)
	for _, part := range []string{e.Msg, e.Details} {
		if part != "" {
			b.WriteString(": " + part)
		}
	}

	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Code != 0 {
		fmt.Fprintf(&b, " (code %d)", e.Code)
	}

	return b.String()
}

// Unwrap returns Err.
func (e *PluginError) Unwrap() error { return e.Err }
