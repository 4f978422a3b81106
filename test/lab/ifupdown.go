package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const interfacesFile = "/etc/network/interfaces"

// WriteInterfaces writes ifupdown's configuration (interfaces(5)).
func (h *Host) WriteInterfaces(text string) error {
	if err := os.WriteFile(interfacesFile, []byte(text), 0o644); err != nil {
		return fmt.Errorf("writing ifupdown's configuration: %w", err)
	}
	return nil
}

// Ifup brings up interfaces of WriteInterfaces and returns the output, which for
// DHCP is the log of the client.
func (h *Host) Ifup(ctx context.Context, interfaces ...string) (string, error) {
	return h.Run(ctx, "ifup", interfaces...)
}

// Ifdown is the opposite.
func (h *Host) Ifdown(ctx context.Context, interfaces ...string) (string, error) {
	return h.Run(ctx, "ifdown", interfaces...)
}

// Run runs a program of the machine to its end and returns its output; an error has
// it as well.
func (h *Host) Run(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := Within(ctx, time.Minute)
	defer cancel()
	out, err := command(ctx, "", program, args...)
	return strings.TrimSpace(out), err
}

// Hide makes a program or file look missing: it is empty and not executable.
func (h *Host) Hide(path string) error {
	empty := filepath.Join(labDir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		return fmt.Errorf("hiding %s: %w", path, err)
	}
	if err := unix.Mount(empty, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("hiding %s: %w", path, err)
	}
	h.onClose(func() error { return unix.Unmount(path, unix.MNT_DETACH) })
	return nil
}
