package daemon

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"
	"time"

	"multihomed/internal/config"
	"multihomed/internal/lockfile"
	"multihomed/internal/offswitch"
	"multihomed/internal/standin"
	"multihomed/internal/status/socket"
)

// answerTime bounds the wait for a daemon that is taking a configuration at this moment.
const answerTime = 2 * time.Second

// CheckReload returns the reason why a running daemon refuses to take a configuration file by a
// reload, or why any daemon refuses it. It fails with a [config.RestartError] if the file is sound. A
// daemon that does not answer is believed to take what is sound.
func CheckReload(ctx context.Context, path string) error {
	next := config.Find(path)
	if next.Fault != nil {
		return next.Fault.Err
	}
	if works, runs := running(ctx, next.Config); runs {
		return next.Reloadable(works)
	}
	return nil
}

// running finds the daemon that works on this host, and its directories as far as they are known:
// cfg may name others.
func running(ctx context.Context, cfg config.Config) (works offswitch.Directories, runs bool) {
	if w, announced := config.Working(cfg); announced {
		return offswitch.Directories{State: w.State, Runtime: w.Runtime}, true
	}
	// One that starts at this moment, or of a release without announcements.
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	usual := config.Default().RuntimeDir
	for {
		here := holds(lockfile.Holder(filepath.Join(cfg.RuntimeDir, lockfile.Name)))
		elsewhere := !here && holds(lockfile.NamespaceHolder(lockfile.TrustedUsers(cfg.RuntimeDir, cfg.StateDir)...))
		if !here && !elsewhere {
			return works, false
		}
		// A daemon that works elsewhere and has lost its runtime directory makes it again at once.
		directory := cfg.RuntimeDir
		works = offswitch.Directories{Runtime: directory}
		if elsewhere {
			directory, works = usual, offswitch.Directories{}
		}
		answer, err := socket.Ask(ctx, directory, false)
		switch {
		case err == nil:
			// An older one does not say it.
			return offswitch.Directories{State: answer.Daemon.StateDir, Runtime: cmp.Or(answer.Daemon.RuntimeDir, directory)}, true
		case !errors.Is(err, socket.ErrNobody):
			return works, true
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return works, true
		}
	}
}

// holds reports whether a daemon holds a lock.
func holds(pid int, held bool, err error) bool { return err == nil && held && !standin.Runs(pid) }
