package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"multihomed/internal/cleanup"
	"multihomed/internal/config"
	"multihomed/internal/event"
	"multihomed/internal/rights"
	"multihomed/internal/unitfile"
)

// Exit statuses of the daemon and of stand-ins. RestartPreventExitStatus= of the unit lists
// those that a restart cannot fix.
const (
	// ExitFailure: a restart may fix it.
	ExitFailure = 1
	// ExitUsage: the command line is wrong (EX_USAGE). Not 2, the status of a Go program
	// that panics or that the watchdog aborts: a restart fixes that.
	ExitUsage = 64
	// ExitRights: this process may not change routing (EX_NOPERM of sysexits.h).
	ExitRights = 77
	// ExitConfiguration: the configuration is bad, there is no last good one, and the kernel
	// holds no rule of ours that somebody must maintain (EX_CONFIG).
	ExitConfiguration = 78
)

var errRights = errors.New("this process may not change routing: it lacks CAP_NET_ADMIN; to fix: run it as root, or give the unit AmbientCapabilities=CAP_NET_ADMIN")

// ExitStatus is the exit status for what Run or Once returned.
func ExitStatus(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errRights):
		return ExitRights
	default:
		if _, refused := errors.AsType[*config.Fault](err); refused {
			return ExitConfiguration
		}
		return ExitFailure
	}
}

// mayRoute fails without the right to change routing: such a daemon would not maintain the
// rules in the kernel.
func mayRoute() error {
	able, err := rights.NetAdmin()
	if err == nil && !able {
		err = errRights
	}
	return err
}

// find returns the configuration to work with. A bad file is an error only if there is no
// last good one and the kernel holds no rule of ours: then the host routes as without us,
// and continues to.
func find(ctx context.Context, o Options) (config.Loaded, error) {
	return may(ctx, o, config.Find(o.ConfigPath))
}

// may is find for a configuration that was read.
func may(ctx context.Context, o Options, loaded config.Loaded) (config.Loaded, error) {
	if err := judge(ctx, loaded.Fault); err != nil {
		o.Logger.LogAttrs(ctx, event.LevelNotice, "kernel unreadable, starting in case it holds rules of multihomed", slog.String("error", err.Error()))
	}
	if loaded.Fault != nil && loaded.Fault.Refused {
		Idle(loaded.Fault)
		return loaded, loaded.Fault
	}
	return loaded, nil
}

// judge notes in the fault of a configuration that the daemon refuses to start with it. If
// the kernel cannot be read, it does not refuse.
func judge(ctx context.Context, fault *config.Fault) error {
	if fault == nil || fault.Known {
		return nil
	}
	stands, err := cleanup.Stands(ctx)
	if err == nil && !stands {
		fault.Refuse()
	}
	return err
}

// Idle completes the fix of a configuration's fault where no daemon runs, so that a reload fails.
func Idle(fault *config.Fault) {
	fault.Start = unitfile.Restart
	if Unit().Unwanted() {
		fault.Start = unitfile.Start(os.DirFS("/"))
	}
}

// Find is [config.Find] for a process that found no daemon running. A fault of the file says
// whether a start, also that of a stand-in, is refused, and how to start.
func Find(ctx context.Context, path string) config.Loaded {
	loaded := config.Find(path)
	if loaded.Fault != nil {
		_ = judge(ctx, loaded.Fault) // The daemon would start then, and say so.
		Idle(loaded.Fault)
	}
	return loaded
}

// faultOf is the fault of a configuration as an error.
func faultOf(loaded config.Loaded) error {
	if loaded.Fault == nil {
		return nil
	}
	return loaded.Fault
}

// keepAgain is the pause before trying again to save the last good configuration.
const keepAgain = 10 * time.Second

// keep saves a configuration as the last good one, as soon as that is possible.
func keep(ctx context.Context, loaded config.Loaded, fault func(error)) {
	ticker := time.NewTicker(keepAgain)
	defer ticker.Stop()
	for {
		err := loaded.Keep(time.Now())
		fault(err)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
