// Command crisp-keeper is the parent of a node's containers. The daemon
// starts it; it is not meant to be run manually. See package crisp/runtime/keeper.
package main

import (
	"os"

	"crisp/runtime/keeper"
)

func main() { os.Exit(keeper.Main(os.Args[1:])) }
