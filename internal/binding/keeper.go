package binding

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"slices"
	"strconv"
	"sync"

	"multihomed/internal/config"
	"multihomed/internal/event"
	"multihomed/internal/news"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Codes of problems.
const (
	// Unread: the entries of `multihomectl bind` cannot be read.
	Unread routing.Code = "bindings-unread"
	// Unsaved: the marks of bound sockets cannot be saved.
	Unsaved routing.Code = "bindings-unsaved"
	// NotInForce: an entry is refused, or waits for something that does not exist yet.
	NotInForce routing.Code = "binding-not-in-force"
)

// Options are what a Keeper works with.
type Options struct {
	Logger *slog.Logger
	Config config.Config
	// Off reports whether all of multihomed is switched off: then nothing is bound.
	Off func() bool
	// Problems takes what is wrong, whenever that changes.
	Problems func([]routing.Problem)
	// NewLed is called when [Keeper.Led] returns something new. It must not wait; nil for nobody.
	NewLed func()
	// LookupUser finds the number of a user by his name; nil asks the host.
	LookupUser func(name string) (uint32, error)
}

// A Keeper keeps what is bound. Its methods are for any goroutine.
type Keeper struct {
	Options

	changed, statesChanged news.Signal
	// looks says that nothing may be written.
	looks bool

	mu sync.Mutex
	// known says that the files could be read once.
	known bool
	// lost says that the file of marks was damaged in this boot.
	lost     bool
	held     []Held
	entries  []Entry
	users    map[string]uint32
	bindings []routing.Binding
	led      []Led
	states   []State
	problems []routing.Problem
}

var _ reconcile.Bindings = (*Keeper)(nil)

// New reads the files. It never fails: what is wrong is a problem.
func New(o Options) *Keeper {
	if o.LookupUser == nil {
		o.LookupUser = lookupUser
	}
	return open(&Keeper{Options: o})
}

// Look is New for somebody who writes nothing, logs nothing and reports no problems.
func Look(cfg config.Config, off func() bool) *Keeper {
	return open(&Keeper{looks: true, Options: Options{
		Logger: slog.New(slog.DiscardHandler), Config: cfg, Off: off, Problems: func([]routing.Problem) {}, LookupUser: lookupUser,
	}})
}

func open(k *Keeper) *Keeper {
	k.changed, k.statesChanged = news.NewSignal(), news.NewSignal()
	k.Reload(context.Background())
	return k
}

// lookupUser asks /etc/passwd. Users of directories are bound by their number.
func lookupUser(name string) (uint32, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), err
}

// Changed is readable when Bindings returns something new.
func (k *Keeper) Changed() <-chan struct{} { return k.changed }

// StatesChanged is readable when States may return something new.
func (k *Keeper) StatesChanged() <-chan struct{} { return k.statesChanged }

// Bindings returns what is bound, and false if that could not be read: what an earlier process
// bound stays so.
func (k *Keeper) Bindings() ([]routing.Binding, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.bindings, k.known
}

// Led returns the users whose DNS queries are led, and false if what is bound could not be read.
func (k *Keeper) Led() ([]Led, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.led, k.known
}

// States are what became of each entry, and Held the marks that sockets may have.
func (k *Keeper) States() ([]State, []Held) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.states, k.held
}

// Reload reads the files and the users again.
func (k *Keeper) Reload(ctx context.Context) {
	added, unread := Load(k.Config.Switch())
	k.mu.Lock()
	defer k.mu.Unlock()
	var problems []routing.Problem
	if unread != nil {
		problems = append(problems, routing.ProblemOf(Unread, routing.Error, "", unread))
		// What was bound stays bound.
		added = slices.DeleteFunc(slices.Clone(k.entries), func(e Entry) bool { return e.Origin == Configured })
	}
	if unread == nil && !k.known {
		k.known = true
		k.changed.Give()
		defer k.sayLed()
	}
	k.entries = nil
	for _, b := range k.Config.Binds {
		k.entries = append(k.entries, Entry{b, Configured})
	}
	k.entries = append(k.entries, added...)
	if k.held == nil {
		held, lost, err := loadHeld(k.Config.RuntimeDir)
		if err != nil {
			problems = append(problems, routing.ProblemOf(Unsaved, routing.Warning, "", err))
		}
		for i := range held {
			held[i].Mask = cmp.Or(held[i].Mask, k.Config.Answers.MarkMask)
		}
		k.held, k.lost = held, lost
	}
	if err := k.holdEntries(); err != nil {
		problems = append(problems, routing.ProblemOf(Unsaved, routing.Warning, "", err))
	}
	k.resolve(ctx, problems)
}

// holdEntries gives numbers to the links of entries that need one.
func (k *Keeper) holdEntries() error {
	held := k.held
	for _, e := range k.entries {
		if e.IsCgroup() || e.User != "" && e.DNS {
			held, _ = Number(held, e.Link, k.lost, k.Config.Answers.MarkMask)
		}
	}
	if slices.Equal(held, k.held) {
		return nil
	}
	// The number counts although it is not saved: a daemon that comes later gives the same ones.
	if k.held = held; k.looks {
		return nil
	}
	return saveHeld(k.Config.RuntimeDir, held, k.lost)
}

// resolve publishes what follows from the entries. The caller holds mu.
func (k *Keeper) resolve(ctx context.Context, problems []routing.Problem) {
	facts := Facts{Entries: k.entries, Users: map[string]uint32{}, Held: k.held, Lost: k.lost, Mask: k.Config.Answers.MarkMask}
	for _, e := range k.entries {
		if _, numbered := e.Users(); e.User == "" || numbered {
			continue
		}
		uid, err := k.LookupUser(e.User)
		_, unknown := errors.AsType[user.UnknownUserError](err)
		if err != nil && !unknown {
			problems = append(problems, routing.ProblemOf(NotInForce, routing.Warning, "", fmt.Errorf("looking for the user %s: %w", e.User, err)))
		}
		if before, known := k.users[e.User]; err != nil && !unknown && known {
			// Who he is cannot be read now, as passwd(5) is being replaced: he stays bound.
			uid, err = before, nil
		}
		if err == nil {
			facts.Users[e.User] = uid
		}
	}
	k.users = facts.Users
	bindings, states := Resolve(facts)
	led := ledUsers(states)
	if k.Off != nil && k.Off() {
		bindings, led = nil, nil
	}
	for _, s := range states {
		if p, is := s.problem(); is {
			problems = append(problems, p)
		}
	}
	k.say(ctx, states)
	k.states = states
	k.statesChanged.Give()
	if !slices.Equal(bindings, k.bindings) {
		k.bindings = bindings
		k.changed.Give()
	}
	if !slices.EqualFunc(led, k.led, Led.equal) {
		k.led = led
		k.sayLed()
	}
	if !slices.Equal(problems, k.problems) {
		k.problems = problems
		k.Problems(problems)
	}
}

func (k *Keeper) sayLed() {
	if k.NewLed != nil {
		k.NewLed()
	}
}

// problem is that of an entry that has no effect.
func (s State) problem() (routing.Problem, bool) {
	p := routing.Problem{Code: NotInForce, Severity: routing.Notice, Object: s.Selector().String(), Fix: s.Fix}
	switch {
	case s.Refused != "":
		p.Severity, p.Text = routing.Warning, fmt.Sprintf("nothing is bound by the binding to %s: %s", s.Link, s.Refused)
	case s.Waits != "":
		p.Text = fmt.Sprintf("the binding to %s waits: %s", s.Link, s.Waits)
	default:
		return p, false
	}
	return p, true
}

// say logs what is bound from now on, and what is bound no longer.
func (k *Keeper) say(ctx context.Context, now []State) {
	has := func(list []State, s State) bool {
		return slices.ContainsFunc(list, func(o State) bool { return o.Bind == s.Bind && o.InForce() })
	}
	for _, s := range k.states {
		if s.InForce() && !has(now, s) {
			k.Logger.LogAttrs(ctx, event.LevelNotice, "no longer bound", slog.String("selector", s.Selector().String()), slog.String("link", s.Link))
		}
	}
	for _, s := range now {
		if s.InForce() && !has(k.states, s) {
			k.Logger.LogAttrs(ctx, event.LevelNotice, "bound", slog.String("selector", s.Selector().String()), slog.String("link", s.Link), slog.String("by", string(s.Origin)))
		}
	}
}

// Hold makes the mark of a link that sockets may have from now on, until the next boot. The rules
// stand after the next pass of the loop.
func (k *Keeper) Hold(ctx context.Context, link string) (routing.Mark, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	mask := k.Config.Answers.MarkMask
	held, is := Number(k.held, link, k.lost, mask)
	if !is {
		return routing.Mark{}, fmt.Errorf("a mark tells at most %d links apart, and all numbers are given until the next boot; to fix: set more bits in answers.mark_mask", mask.Last())
	}
	if len(held) != len(k.held) {
		if err := saveHeld(k.Config.RuntimeDir, held, k.lost); err != nil {
			return routing.Mark{}, fmt.Errorf("%w; to fix: see to it that multihomed can write its runtime directory", err)
		}
		k.held = held
		k.resolve(ctx, k.problemsOfFiles())
	}
	at := slices.IndexFunc(k.held, func(h Held) bool { return h.isOf(link, mask) })
	return mask.Bound(k.held[at].Number), nil
}

// problemsOfFiles are those that resolve does not find.
func (k *Keeper) problemsOfFiles() []routing.Problem {
	return slices.DeleteFunc(slices.Clone(k.problems), func(p routing.Problem) bool { return p.Code == NotInForce })
}

// Restore writes the file of marks again, after somebody removed the runtime directory.
func (k *Keeper) Restore() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.held) == 0 && !k.lost {
		return nil
	}
	return saveHeld(k.Config.RuntimeDir, k.held, k.lost)
}
