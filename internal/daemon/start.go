package daemon

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"multihomed/internal/cleanup"
	"multihomed/internal/config"
	"multihomed/internal/event"
	"multihomed/internal/rights"
)

// Exit statuses of the daemon and of those who stand in for it. Those that a
// restart cannot cure are in RestartPreventExitStatus= of the unit.
const (
	// ExitFailure: a restart may cure it.
	ExitFailure = 1
	// ExitUsage: the command line makes no sense (EX_USAGE). Not 2, with which Go ends
	// a program that panics or that the watchdog aborts: a restart cures that.
	ExitUsage = 64
	// ExitRights: this process may not change routing (EX_NOPERM of sysexits.h).
	ExitRights = 77
	// ExitConfiguration: the configuration is bad, none was ever good, and nothing
	// of ours stands that would have to be looked after (EX_CONFIG).
	ExitConfiguration = 78
)

// errRights says that the process may not do its work.
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

// mayRoute fails where nothing could be done: a daemon that cannot write would
// leave rules standing that nobody looks after.
func mayRoute() error {
	able, err := rights.NetAdmin()
	if err == nil && !able {
		err = errRights
	}
	return err
}

// find returns the configuration to work with. A bad one is an error only where
// none was ever good and nothing of ours stands: then the host routes as without us,
// and goes on doing so.
func find(ctx context.Context, o Options) (config.Loaded, error) {
	loaded := config.Find(o.ConfigPath)
	if loaded.Fault == nil || loaded.Fault.Known {
		return loaded, nil
	}
	stands, err := cleanup.Stands(ctx)
	if err != nil {
		// What stands is not known, and may need us.
		o.Logger.LogAttrs(ctx, event.LevelNotice, "reading the kernel failed, so that what stands is not known", slog.String("error", err.Error()))
		return loaded, nil
	}
	if !stands {
		loaded.Fault.Instead = "nothing: no configuration was in force before, and no rule of multihomed stands, so the host routes by its main table alone"
		return loaded, loaded.Fault
	}
	return loaded, nil
}

// faultOf is the fault of a configuration as an error.
func faultOf(loaded config.Loaded) error {
	if loaded.Fault == nil {
		return nil
	}
	return loaded.Fault
}

// keepAgain is how often it is tried to keep a configuration that is in force.
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
