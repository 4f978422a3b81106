// Command guest is what runs inside of a virtual machine of package vm: as process
// 1 of its initial file system it mounts the file tree, as an agent it runs
// commands for the test. It is static, because the file tree is anybody's.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
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
	fmt.Fprintf(os.Stderr, "guest: %v\n", err)
	if os.Getpid() == 1 {
		// This line is the last on the console; the end of process 1 would be a panic
		// of the kernel with many more.
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		fmt.Fprintf(os.Stderr, "guest: switching off: %v\n", err)
	}
	os.Exit(1)
}
