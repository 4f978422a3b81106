package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"multihomed/internal/config"
	"multihomed/internal/event"
	"multihomed/internal/lockfile"
)

// lockNamespace takes the lock of the network namespace, so that no other multihomed works in
// it, whatever its runtime directory. It waits until ctx is done for one that is ending. The
// caller calls what it returns to release the lock.
func lockNamespace(ctx context.Context, cfg config.Config, log *slog.Logger) (func(), error) {
	trusted := lockfile.TrustedUsers(cfg.RuntimeDir, cfg.StateDir)
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		unlock, err := tryNamespace(ctx, trusted, log)
		if err == nil {
			return unlock, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("starting: %w", err)
		case <-ticker.C:
		}
	}
}

// announce tells others where this daemon works, until the caller calls what it returns.
func announce(ctx context.Context, cfg config.Loaded, log *slog.Logger) (end func()) {
	a, err := cfg.Works()
	if err != nil {
		// They go by the file then.
		log.LogAttrs(ctx, event.LevelNotice, "directories not announced", slog.String("error", err.Error()))
		return func() {}
	}
	return func() { closing(log, "announcement", a.Close) }
}

// tryNamespace fails only if another multihomed works in this network namespace.
func tryNamespace(ctx context.Context, trusted []uint32, log *slog.Logger) (unlock func(), err error) {
	n, err := lockfile.TryNamespace(trusted...)
	_, held := errors.AsType[*lockfile.NamespaceHeldError](err)
	switch {
	case err == nil:
		return func() { closing(log, "lock of the network namespace", n.Close) }, nil
	case held:
		return nil, err
	default:
		// Ordinary users can cause this, and must not stop the service.
		log.LogAttrs(ctx, event.LevelNotice, "network namespace not locked, so that another multihomed would not be noticed", slog.String("error", err.Error()))
		return func() {}, nil
	}
}
