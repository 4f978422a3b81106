package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"multihomed/internal/cleanup"
	"multihomed/internal/config"
	"multihomed/internal/event"
	"multihomed/internal/lockfile"
	"multihomed/internal/offswitch"
	"multihomed/internal/ownership"
	"multihomed/internal/unitfile"
)

// KeptAway says why no stand-in may do the daemon's work: multihomed is switched off, or its
// service is disabled or masked. It is empty if a stand-in may, as for a service that is only
// stopped or has failed.
func KeptAway(cfg config.Config) (why string) {
	if off := offswitch.Load(cfg.Switch()); off.HostOff() {
		return "multihomed is " + off.Why()
	}
	if unit := Unit(); unit.Unwanted() {
		return unitfile.Service + " is " + unit.String()
	}
	return ""
}

// Unit is the state of the daemon's unit.
func Unit() unitfile.State { return unitfile.Read(os.DirFS("/"), unitfile.Service) }

// LetGo removes the rules that answer "unreachable" because nobody will maintain the routing,
// for the reason why. It does nothing while a daemon or a stand-in works on this host. The
// table of a link that goes down is empty, and with these rules the host would have no way
// out until multihomed starts.
func LetGo(ctx context.Context, cfg config.Config, log *slog.Logger, why string) (err error) {
	if stands, err := cleanup.Guards(ctx); err != nil || !stands {
		return err
	}
	if err := ownership.MakeDirectory(cfg.RuntimeDir, cfg.StateDir); err != nil {
		return err
	}
	lock, err := lockfile.TryLock(filepath.Join(cfg.RuntimeDir, lockfile.Name))
	if _, held := errors.AsType[*lockfile.HeldError](err); held {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	unlock, err := tryNamespace(ctx, lockfile.TrustedUsers(cfg.RuntimeDir, cfg.StateDir), log)
	if err != nil {
		return nil // Another one of ours works here.
	}
	defer unlock()
	return letGo(ctx, log, why)
}

// letGo is LetGo for a caller that holds the locks.
func letGo(ctx context.Context, log *slog.Logger, why string) error {
	done, left, err := cleanup.LetGo(ctx)
	if done.Rules > 0 {
		log.LogAttrs(ctx, slog.LevelWarn, Unmaintained(why, done.Rules, left), event.Is(event.LetGo)) //nolint:sloglint // the sentence has counts
	}
	if err != nil {
		return fmt.Errorf("removing the rules that answer \"unreachable\", because %s: %w", why, err)
	}
	return nil
}

// Unmaintained is the log line after the rules that answer "unreachable" were removed and
// others stay.
func Unmaintained(why string, removed, left int) string {
	count := func(n int) string {
		if n == 1 {
			return "1 rule"
		}
		return fmt.Sprintf("%d rules", n)
	}
	return fmt.Sprintf("%s, so nobody maintains the routing of links: %s that answered \"unreachable\" removed, so that links which change follow the main table; "+
		"%s of multihomed left, which multihomectl off or multihomectl flush removes", why, count(removed), count(left))
}

// letGoIfMasked is for the end of the daemon. systemd runs no ExecStopPost= of a masked unit,
// and does not restart it. ExecStopPost= of a disabled unit does the same, because it can
// tell a stop from a restart.
func letGoIfMasked(ctx context.Context, log *slog.Logger) {
	if unit := Unit(); unit == unitfile.Masked {
		ctx = context.WithoutCancel(ctx)
		if err := letGo(ctx, log, unitfile.Service+" is "+unit.String()); err != nil {
			log.LogAttrs(ctx, slog.LevelError, "the host may have no way out", event.Is(event.Failed), slog.String("error", err.Error()))
		}
	}
}
