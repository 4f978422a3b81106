package daemon

import (
	"context"
	"log/slog"
	"os"

	"multihomed/internal/binder/wire"
	"multihomed/internal/binding"
	"multihomed/internal/cleanup"
	"multihomed/internal/holding"
	"multihomed/internal/news"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// A History is one that is open.
type History struct{ *history }

func OpenHistory(ctx context.Context, log *slog.Logger, directory string, p routing.Policy) History {
	return History{openHistory(ctx, log, directory, p)}
}

func (h History) Past() []cleanup.Era { return h.past }

// Cleaned does what clean does when the kernel had nothing left.
func (h History) Cleaned(ctx context.Context) {
	h.past = nil
	h.write(ctx, []cleanup.Era{cleanup.EraOf(h.policy)})
}

// Quiet is for how long nothing must have happened before memory is given back.
const Quiet = quiet

// GiveBack gives memory back until ctx is done. Call changed when something has happened;
// held is what the runtime has from the system.
func GiveBack(ctx context.Context) (changed func(), held func() uint64) {
	w := news.NewSignal()
	go giveBack(ctx, w)
	return w.Give, heldMemory
}

// A Part is a task. Run gets what says that it is ready.
type Part struct {
	Name   string
	Run    func(ctx context.Context, isReady func()) error
	AtOnce bool
}

// RunAll is runAll.
func RunAll(ctx context.Context, ready func(), parts ...Part) error {
	var tasks []task
	for _, p := range parts {
		serves := newLatch()
		t := task{name: p.Name, run: func(ctx context.Context) error { return p.Run(ctx, serves.give) }, ready: serves}
		if p.AtOnce {
			t.ready = nil
		}
		tasks = append(tasks, t)
	}
	return runAll(ctx, tasks, ready)
}

// ParseStoreName and StoreName are those of attachments in systemd's store.
func ParseStoreName(name string) (binding.Attachment, uint64, bool) { return parseStoreName(name) }

func StoreName(a binding.Attachment, number uint64) string { return storeName(a, number) }

// LeastPause is that of the first attempts.
const LeastPause = leastPause

// A UserNames is a follower of what is bound, with a helper and a systemd of the test.
type UserNames struct{ n *userNames }

// UserNamesOptions are the test's.
type UserNamesOptions struct {
	Led    func() ([]binding.Led, bool)
	Bind   func(wire.Users, *os.File) ([]*os.File, *os.File, error)
	Maps   *holding.Maps
	Store  func(name string, f *os.File) error
	Forget func(name string)
	Fault  func(error)
}

func NewUserNames(o UserNamesOptions) UserNames {
	return UserNames{&userNames{
		log: slog.New(slog.DiscardHandler), links: &userLinks{store: o.Store, forget: o.Forget}, maps: o.Maps,
		fault: func(_ routing.Code, err error) { o.Fault(err) },
		bind: func(_ context.Context, u wire.Users, f *os.File) ([]*os.File, *os.File, error) {
			return o.Bind(u, f)
		},
		led:     o.Led,
		rules:   func(context.Context) error { return nil },
		servers: func(context.Context, string) (wire.DNS, error) { return wire.DNS{}, nil },
		kept:    func() {}, asked: news.NewSlot[uint64](),
	}}
}

func (u UserNames) Look()                                   { u.n.look() }
func (u UserNames) Run(ctx context.Context) error           { return u.n.run(ctx) }
func (u UserNames) Keep(ctx context.Context) error          { return u.n.keep(ctx) }
func (u UserNames) All() []binding.Attachment               { return u.n.links.all() }
func (u UserNames) TakeStored(name string, f *os.File) bool { return u.n.links.takeStored(name, f) }
func (u UserNames) Close() error                            { return u.n.links.close() }

// ChangesOf is changesOf, HistogramOf is histogramOf.
func ChangesOf(byVerb []uint64) []status.Changed         { return changesOf(byVerb) }
func HistogramOf(l reconcile.Latencies) status.Histogram { return histogramOf(l) }

// Problems are those in a log.
type Problems struct{ problems }

func NewProblems() *Problems {
	return &Problems{problems{log: slog.New(slog.DiscardHandler)}}
}

func (p *Problems) Note(all ...routing.Problem) { p.note(context.Background(), all) }

// Written counts the problems of a code and severity in the log.
func (p *Problems) Written(code routing.Code, severity routing.Severity) uint64 {
	return p.written[loggedProblem{code, severity}]
}
