package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"time"

	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/lockfile"
	"multihomed/internal/event"
)

// serviceUser is the user of the unit.
const serviceUser = "multihomed"

// lockNamespace makes sure that nobody else of ours works in this network namespace,
// whatever his runtime directory. One that is about to end is waited for until ctx is
// done. Closing what it returns ends that.
func lockNamespace(ctx context.Context, cfg config.Config, log *slog.Logger) (func(), error) {
	trusted := trustedUsers(cfg)
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		n, err := lockfile.TryNamespace(trusted...)
		_, held := errors.AsType[*lockfile.NamespaceHeldError](err)
		switch {
		case err == nil:
			return func() { closing(log, "lock of the network namespace", n.Close) }, nil
		case !held:
			// Whoever brings that about must not keep the service from working.
			log.LogAttrs(ctx, event.LevelNotice, "network namespace not locked, so that another multihomed would not be noticed", slog.String("error", err.Error()))
			return func() {}, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("starting: %w", err)
		case <-ticker.C:
		}
	}
}

// trustedUsers are those as whom multihomed runs.
func trustedUsers(cfg config.Config) []uint32 {
	all := []uint32{0, uint32(os.Geteuid())} //nolint:gosec // user numbers are 32 bits wide
	if info, err := os.Stat(cfg.RuntimeDir); err == nil {
		if owner, is := info.Sys().(*syscall.Stat_t); is {
			all = append(all, owner.Uid)
		}
	}
	if u, err := user.Lookup(serviceUser); err == nil {
		if uid, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
			all = append(all, uint32(uid))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
