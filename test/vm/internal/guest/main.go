// Command guest is what runs inside of a virtual machine of package vm: as process
// 1 of its initial file system it mounts the file tree, as an agent it runs
// commands for the test. It is static, because the file tree is anybody's.
package main

import (
	"fmt"
	"os"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "agent":
		err = serve()
	case os.Getpid() == 1:
		err = boot()
	default:
		err = fmt.Errorf("usage: process 1, or %s agent", os.Args[0])
	}
	// The end of process 1 is a panic of the kernel, which ends the machine; the
	// console has this line.
	fmt.Fprintf(os.Stderr, "guest: %v\n", err)
	os.Exit(1)
}
