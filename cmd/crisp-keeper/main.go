// Command crisp-keeper is the parent of a node's containers. The daemon
// starts it; it is of no use by hand. See package crisp/runtime/keeper.
package main

import (
	"os"

	"crisp/runtime/keeper"
)

func main() { os.Exit(keeper.Main(os.Args[1:])) }
