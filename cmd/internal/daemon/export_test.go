package daemon

import (
	"context"
	"log/slog"

	"multihomed/routing"
)

const HistoryName = historyName

// Era describes one, and Eras those of a file.
type Era = era

func EraOf(p routing.Policy) Era { return eraOf(p) }

func ReadEras(path string) ([]Era, error) { return readEras(path) }

// A History is one that is open.
type History struct{ *history }

func OpenHistory(ctx context.Context, log *slog.Logger, directory string, p routing.Policy) History {
	return History{openHistory(ctx, log, directory, p)}
}

func (h History) Past() []Era { return h.past }

// Cleaned does what clean does when the kernel had nothing left.
func (h History) Cleaned(ctx context.Context) {
	h.past = nil
	h.write(ctx, []era{eraOf(h.policy)})
}
