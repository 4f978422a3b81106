package config

import (
	"fmt"
	"os"

	"multihomed/internal/lastgood"
	"multihomed/internal/lockfile"
	"multihomed/internal/offswitch"
)

// Working returns where the daemon of this network namespace works, if one runs and says so. That
// may be elsewhere than its file says by now: it refuses a reload that changes its directories.
// The configuration says whom to believe: the owners of its directories, besides root and the
// user of the service.
func Working(cfg Config) (lockfile.Workplace, bool) {
	usual := Default()
	w, runs, err := lockfile.Announced(lockfile.TrustedUsers(cfg.RuntimeDir, cfg.StateDir, usual.RuntimeDir, usual.StateDir)...)
	// Where the kernel does not tell, the file counts.
	return w, err == nil && runs
}

// Works tells others where the daemon works with this configuration, for [Working].
func (l Loaded) Works() (*lockfile.Announcement, error) {
	return lockfile.Announce(lockfile.Workplace{Runtime: l.RuntimeDir, State: l.StateDir, Config: l.source})
}

// Here is the configuration with the directories of the daemon of this network namespace, if one
// runs.
func (c Config) Here() Config {
	if w, runs := Working(c); runs {
		c = c.in(w)
	}
	return c
}

func (c Config) in(w lockfile.Workplace) Config {
	c.StateDir, c.RuntimeDir = w.State, w.Runtime
	return c
}

// FindHere is [Find] for everybody but the daemon: while a daemon runs, the directories are those
// in which it works. If it would refuse its file because that names others, the fault says so,
// and the rest is what it works with: its last good configuration. So it is for a file that is not
// the daemon's and names others.
func FindHere(path string) Loaded {
	loaded := Find(path)
	w, runs := Working(loaded.Config)
	if !runs {
		return loaded
	}
	own := loaded.source == w.Config
	if own && loaded.Fault != nil {
		loaded = findFrom(path, loaded.usual, w.State)
	} else if err := loaded.Reloadable(offswitch.Directories{State: w.State, Runtime: w.Runtime}); err != nil {
		if own {
			loaded.Fault = Refused(loaded.source, err)
		}
		if kept, known := keptBy(w); known {
			loaded.Config = kept
		}
	}
	loaded.Config = loaded.in(w)
	return loaded
}

// SalvageHere is [Salvage] while a daemon may run: the directories are those in which it works
// then, and so is the rest where it refuses the file.
func SalvageHere(path string) (cfg Config, why error) {
	cfg, why = Salvage(path)
	w, runs := Working(cfg)
	if !runs {
		return cfg, why
	}
	if why != nil || cfg.StateDir != w.State || cfg.RuntimeDir != w.Runtime {
		if kept, known := keptBy(w); known {
			cfg = kept
		}
	}
	return cfg.in(w), why
}

// keptBy is what a daemon kept as its last good configuration.
func keptBy(w lockfile.Workplace) (Config, bool) {
	saved, err := lastgood.Read(w.State, w.Config)
	if err != nil {
		return Config{}, false
	}
	cfg, err := Parse(saved.Path, saved.Text)
	return cfg, err == nil
}

// Candidate reads a file that may become the daemon's, with the directories of the daemon of this network
// namespace, if one runs. Elsewhere says that the file names others. The file must exist and be good.
func Candidate(path string) (cfg Config, elsewhere bool, err error) {
	if _, err := os.Stat(path); err != nil {
		return Config{}, false, fmt.Errorf("reading the configuration: %w", err)
	}
	cfg, err = Load(path)
	if err != nil {
		return Config{}, false, err
	}
	own := cfg.Switch()
	cfg = cfg.Here()
	return cfg, cfg.Switch() != own, nil
}
