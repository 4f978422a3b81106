package daemon

import (
	"context"
	"log/slog"

	"multihomed/internal/cleanup"
	"multihomed/internal/news"
	"multihomed/routing"
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
