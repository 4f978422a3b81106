// Multihomectl shows what multihomed makes of the links of this host, and takes
// it away again.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"multihomed/internal/cli"
)

// version is set by the linker.
var version = "development"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	program := cli.Program{
		Version: version, In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Root: os.DirFS("/"), Env: os.Getenv,
	}
	status := program.Run(ctx, os.Args[1:])
	stop()
	os.Exit(status)
}
