package cni

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrNoConfig says that a directory holds no network configuration.
	ErrNoConfig = errors.New("no network configuration")
	// ErrInvalidConfig says that the first network configuration of a directory
	// cannot be used.
	ErrInvalidConfig = errors.New("invalid network configuration")
	// ErrNoPlugin says that the program of a plugin is missing.
	ErrNoPlugin = errors.New("no such plugin")
)

// PluginError is a plugin's answer that it has not done what it was asked.
type PluginError struct {
	// Plugin and Command name the call: "bridge", "ADD".
	Plugin, Command string
	// Code is a code of the CNI specification or of the plugin's own, or 0.
	Code uint
	// Msg and Details are the plugin's words, or what it left on its
	// standard error.
	Msg, Details string
	// Err is set when the plugin gave no answer: why it could not be run, or
	// how it ended.
	Err error
}

// Error names the plugin, the command and all that is known of the reason.
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

// Unwrap returns the reason why the plugin gave no answer, if that is so.
func (e *PluginError) Unwrap() error { return e.Err }
