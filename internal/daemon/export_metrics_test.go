package daemon

import (
	"context"
	"log/slog"

	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

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
