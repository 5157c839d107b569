// Command nonewprivs prints its effective user. It is installed setuid root:
// started by another user it prints 0, unless no_new_privs is set.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
}
