package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"crisp/runtime/pages"
)

// pagesCommand is the internal command of the process that [readPages] starts.
const pagesCommand = "read-pages"

// readPages reads the memory of running processes, see [pages.Apart].
func readPages(ctx context.Context, groups []pages.Lister, use func(block []byte) error) error {
	return pages.Apart(ctx, []string{"/proc/self/exe", pagesCommand}, groups, use)
}

// readPagesCommand is what that process does.
func readPagesCommand() *cobra.Command {
	return &cobra.Command{
		Use: pagesCommand, Hidden: true,
		RunE: func(_ *cobra.Command, args []string) error { return pages.Main(args, os.Stdout) },
	}
}
