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
