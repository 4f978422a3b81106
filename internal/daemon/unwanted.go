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

// KeptAway says why nobody may do the daemon's work while it does not run; empty if
// somebody may: multihomed is switched off, or the administrator keeps the service from
// running. A service that is merely stopped, or failed, is stood in for.
func KeptAway(cfg config.Config) (why string) {
	if off := offswitch.Load(cfg.Switch()); off.HostOff() {
		return "multihomed is " + off.Why()
	}
	if unit := Unit(); unit.Unwanted() {
		return unitfile.Service + " is " + unit.String()
	}
	return ""
}

// Unit is whether the administrator wants the service to run.
func Unit() unitfile.State { return unitfile.Read(os.DirFS("/"), unitfile.Service) }

// LetGo removes the rules that answer "unreachable" where nobody will maintain the
// routing again for the reason why. It does nothing while somebody works on this host.
// The table of a link that goes down is empty, and with these rules the host would have
// no way out until multihomed starts.
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

// letGo is LetGo for the one who holds the locks.
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

// Unmaintained is what the log says when the rules that answer "unreachable" were
// removed and others stay.
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

// letGoIfMasked is for the end of the daemon. Of a masked unit systemd knows no
// ExecStopPost=, and starts it no more, also not to restart it. That of a disabled one
// does this itself, because it can tell a stop from a restart.
func letGoIfMasked(ctx context.Context, log *slog.Logger) {
	if unit := Unit(); unit == unitfile.Masked {
		ctx = context.WithoutCancel(ctx)
		if err := letGo(ctx, log, unitfile.Service+" is "+unit.String()); err != nil {
			log.LogAttrs(ctx, slog.LevelError, "the host may be without a way out", event.Is(event.Failed), slog.String("error", err.Error()))
		}
	}
}
