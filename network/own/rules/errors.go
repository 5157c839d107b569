package rules

import "errors"

var (
	// ErrPortTaken means that a host port belongs to another pod.
	ErrPortTaken = errors.New("host port is taken")
	// ErrUnsupported means that the kernel lacks a part of nftables.
	ErrUnsupported = errors.New("kernel lacks nftables, or a part of it")
)
