package failover

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"

	"multihomed/internal/event"
	"multihomed/internal/ownership"
	"multihomed/routing"
)

// Answered are the targets that have answered in a network. A link that is dead when watching
// begins is judged by them: without, nothing would be known of it but that nobody answers.
type Answered struct {
	Network
	Targets []string `json:"targets"`
}

// A Network is what an uplink is connected to, as far as the host can tell: an interface keeps
// its name when a laptop moves, and what answers in one network need not do so in another one.
type Network struct {
	Interface string `json:"interface"`
	// Profile is the UUID of NetworkManager's, empty for another link.
	Profile string         `json:"profile,omitempty"`
	Family  routing.Family `json:"family"`
	// Gateway is the next hop of the default, the zero Addr if there is none.
	Gateway netip.Addr `json:"gateway"`
}

func networkOf(u *Uplink) Network {
	return Network{Interface: u.Name, Profile: u.Profile, Family: u.Family, Gateway: u.Exit.Route.Gateway}
}

// Bounds of what is kept: networks, targets of one, and bytes of a word.
const (
	mostNetworks = 64
	mostAnswered = 16
	longestWord  = 128
	maxAnswered  = 1 << 20
)

// An Archive outlives the boot.
type Archive interface {
	// Recall returns what was kept; nothing if that cannot be read.
	Recall() []Answered
	// Keep replaces it.
	Keep([]Answered) error
}

// AnsweredName is the name of the file of [AnsweredFile] in the state directory.
const AnsweredName = "answered.json"

// An AnsweredFile is an Archive in the state directory.
type AnsweredFile struct {
	Directory string
}

var _ Archive = AnsweredFile{}

// Recall reads the file. What cannot be read, or breaks a bound, is as good as nothing: then a
// link that is dead from the beginning is not known to be.
func (f AnsweredFile) Recall() []Answered {
	all := recall[Answered](filepath.Join(f.Directory, AnsweredName), maxAnswered)
	long := func(s string) bool { return len(s) > longestWord }
	all = slices.DeleteFunc(all, func(a Answered) bool {
		return long(a.Interface) || long(a.Profile) || a.Family != routing.IPv4 && a.Family != routing.IPv6 ||
			len(a.Targets) == 0 || len(a.Targets) > mostAnswered || slices.ContainsFunc(a.Targets, long)
	})
	return all[:min(len(all), mostNetworks)]
}

// Keep replaces the file.
func (f AnsweredFile) Keep(all []Answered) error {
	data, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("encoding which targets have answered: %w", err)
	}
	if err := ownership.WriteFile(filepath.Join(f.Directory, AnsweredName), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("keeping which targets have answered: %w", err)
	}
	return nil
}

// connect says in which network an uplink is.
func (c *Controller) connect(w *watch) {
	n := networkOf(&w.uplink)
	if w.answered != nil && w.network == n {
		return
	}
	w.network, w.answered = n, map[string]struct{}{}
	i := slices.IndexFunc(c.answered, func(a Answered) bool { return a.Network == n })
	if i < 0 {
		return
	}
	for _, name := range c.answered[i].Targets {
		w.answered[name] = struct{}{}
	}
	w.machine.Remember(c.answered[i].Targets)
}

// learn notes that a target has answered. Of the others of its network those are forgotten that
// are asked no longer.
func (c *Controller) learn(w *watch, target string) {
	if _, known := w.answered[target]; known || len(target) > longestWord || len(w.network.Interface) > longestWord || len(w.network.Profile) > longestWord {
		return
	}
	if _, asked := w.how[target]; !asked || w.answered == nil {
		return
	}
	maps.DeleteFunc(w.answered, func(name string, _ struct{}) bool {
		_, asked := w.how[name]
		return !asked
	})
	if len(w.answered) >= mostAnswered {
		return
	}
	w.answered[target] = struct{}{}
	c.forget(w.network)
	c.answered = slices.Insert(c.answered, 0, Answered{Network: w.network, Targets: slices.Sorted(maps.Keys(w.answered))})
	c.answered = c.answered[:min(len(c.answered), mostNetworks)]
	c.archive.Put(slices.Clone(c.answered))
}

// forget forgets which targets have answered in a network, and reports whether any had.
func (c *Controller) forget(n Network) bool {
	before := len(c.answered)
	c.answered = slices.DeleteFunc(c.answered, func(a Answered) bool { return a.Network == n })
	return len(c.answered) < before
}

// archiveAll writes which targets have answered.
func (c *Controller) archiveAll(ctx context.Context) {
	if c.Archive == nil {
		return
	}
	keepEach(ctx, c.archive, c.Archive.Keep, func(err error) {
		c.Logger.LogAttrs(ctx, event.LevelNotice, "after a boot, links that do not work from the beginning will not be known", slog.String("error", err.Error()))
	})
}
