package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"multihomed/internal/cli"
)

// runCtl is the administrator's tool.
func runCtl(c call) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	program := cli.Program{
		Version: version, In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Root: os.DirFS("/"), Env: os.Getenv, GiveBack: stop,
	}
	return program.Run(ctx, c.args)
}
