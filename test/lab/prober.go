package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// ProberSocket is where the lab's prober listens: the value of the daemon's key `[failover] prober`,
// and its default.
const (
	ProberSocket = proberDir + "/socket"
	proberDir    = "/run/multihomed-prober"
)

// nobody is a user without any right.
const nobody = 65534

// StartProber starts the program as multihomed-prober, as its unit does: as a user without
// capabilities. It returns when the prober listens.
func (h *Host) StartProber(ctx context.Context, program string, env ...string) (*Process, error) {
	path, err := h.copyProgram(program, "multihomed-prober")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(proberDir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of the prober's socket: %w", err)
	}
	if err := os.Chown(proberDir, nobody, nobody); err != nil {
		return nil, fmt.Errorf("giving the prober its directory: %w", err)
	}
	if err := os.Remove(ProberSocket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the socket of an earlier prober: %w", err)
	}
	p, err := h.Start(ProcessConfig{
		Path: path, Args: []string{"--socket", ProberSocket}, Env: env,
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := Within(ctx, 10*time.Second)
	defer cancel()
	err = Eventually(ctx, func() error {
		select {
		case <-p.Done():
			return fmt.Errorf("it ended (%w):\n%s", p.exitError(), p.Log())
		default:
		}
		_, err := os.Stat(ProberSocket)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("starting the prober: %w", err)
	}
	return p, nil
}

// copyProgram copies a program to where every user may run it: a checkout below /root is not.
func (h *Host) copyProgram(program, name string) (string, error) {
	path := labDir + "/" + name
	data, err := os.ReadFile(program)
	if err != nil {
		return "", fmt.Errorf("reading the program: %w", err)
	}
	// Not over the program of a process that still runs.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("removing the old copy: %w", err)
	}
	if err := os.WriteFile(path, data, 0o755); err != nil {
		return "", fmt.Errorf("copying the program: %w", err)
	}
	return path, nil
}
