package offline

import (
	"path/filepath"

	"multihomed/internal/config"
	"multihomed/internal/lockfile"
	"multihomed/internal/standin"
)

// DaemonRuns reports whether a daemon holds the lock, and not one who stands in for it.
func DaemonRuns(cfg config.Config) bool {
	pid, held, err := Worker(cfg)
	return err == nil && held && !standin.Runs(pid)
}

// Worker is the process that works on this host: the one that holds the lock, or, where
// somebody removed the runtime directory under it, that of the network namespace. It is
// 0 if this user may not see which it is.
func Worker(cfg config.Config) (pid int, held bool, err error) {
	pid, held, err = lockfile.Holder(filepath.Join(cfg.RuntimeDir, lockfile.Name))
	if err != nil || held {
		return pid, held, err
	}
	return lockfile.NamespaceHolder(lockfile.TrustedUsers(cfg.RuntimeDir, cfg.StateDir)...)
}

func (r *reading) readDaemon() {
	pid, held, err := Worker(r.cfg)
	if err != nil {
		r.note("whether the daemon runs: %v", err)
	}
	if r.running = held && !standin.Runs(pid); r.running {
		r.pid = pid
	}
}
