package socket

import (
	"context"
	"sync"
	"time"

	"multihomed/internal/news"
)

// A Producer makes documents for many clients at once. Each gets one whose making began after
// its request; all that wait get the same one. However many ask, at most a tenth of
// one processor's time goes into it.
type Producer struct {
	make func(context.Context) ([]byte, error)
	wake news.Signal

	mu      sync.Mutex
	waiting []chan product
}

type product struct {
	document []byte
	err      error
}

// NewProducer returns a producer; Run must be running.
func NewProducer(produce func(context.Context) ([]byte, error)) *Producer {
	return &Producer{make: produce, wake: news.NewSignal()}
}

// Document returns a document.
func (p *Producer) Document(ctx context.Context) ([]byte, error) {
	answer := make(chan product, 1)
	p.mu.Lock()
	p.waiting = append(p.waiting, answer)
	p.mu.Unlock()
	p.wake.Give()
	select {
	case made := <-answer:
		return made.document, made.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// The pause after a document is pauseFactor times as long as its making took, and at most
// longestPause, for which a user waits patiently.
const (
	pauseFactor  = 9
	longestPause = 700 * time.Millisecond
)

// Run makes documents until ctx is done.
func (p *Producer) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C: // the pause is over
		case <-ctx.Done():
			return nil
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
			return nil
		}
		p.mu.Lock()
		waiting := p.waiting
		p.waiting = nil
		p.mu.Unlock()
		if len(waiting) == 0 {
			timer.Reset(0)
			continue
		}
		began := time.Now()
		making, cancel := context.WithTimeout(ctx, sendTimeout)
		document, err := p.make(making)
		cancel()
		for _, answer := range waiting {
			answer <- product{document, err}
		}
		timer.Reset(min(pauseFactor*time.Since(began), longestPause))
	}
}
