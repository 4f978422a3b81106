package cli

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// agent asks for passwords on a terminal where no desktop does (pkttyagent(1)).
const agent = "/usr/bin/pkttyagent"

// startAgent starts the agent of polkit, and returns what ends it. Without one polkit says so.
func startAgent(ctx context.Context) (end func()) {
	ready, notify, err := os.Pipe()
	if err != nil {
		return func() {}
	}
	defer ready.Close()
	const inherited = 3                                                                                                                  // the first of ExtraFiles (os/exec)
	cmd := exec.CommandContext(ctx, agent, "--process", strconv.Itoa(os.Getpid()), "--notify-fd", strconv.Itoa(inherited), "--fallback") //nolint:gosec // two numbers of ours
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdin, os.Stdout, os.Stderr, []*os.File{notify}
	err = cmd.Start()
	_ = notify.Close() // the agent has its own
	if err != nil {
		return func() {}
	}
	// It closes its end when it has registered.
	_ = ready.SetReadDeadline(time.Now().Add(agentTime))
	_, _ = ready.Read(make([]byte, 1))
	return func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}
}

// agentTime is how long the agent may take to register.
const agentTime = 5 * time.Second
