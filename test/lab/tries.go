package lab

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A Try is one question to an echo server from a socket of its own, as a program asks that has just
// been started.
type Try struct {
	At      time.Time
	Network string // udp, tcp or ping
	Answer
	Err error
}

// Tries asks again and again, whatever becomes of the questions before.
type Tries struct {
	host *Host
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu  sync.Mutex
	all []Try
}

// tryTimeout is how long a program waits that has other things to do.
const tryTimeout = 900 * time.Millisecond

// NewTries asks dst every so often over each network until Stop.
func (h *Host) NewTries(ctx context.Context, every time.Duration, from From, dst netip.Addr, networks ...string) *Tries {
	ctx, stop := context.WithCancel(ctx)
	t := &Tries{host: h, stop: stop}
	t.wg.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			for _, network := range networks {
				t.wg.Go(func() { t.try(ctx, network, from, dst) })
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
	return t
}

func (t *Tries) try(ctx context.Context, network string, from From, dst netip.Addr) {
	ctx, cancel := context.WithTimeout(ctx, Stretched(tryTimeout))
	defer cancel()
	one := Try{At: time.Now(), Network: network}
	if network == "ping" {
		// One request: the next one would leave by the way of that moment.
		ctx, cancel := context.WithTimeout(ctx, Stretched(pingEvery))
		defer cancel()
		one.Answer, one.Err = t.host.Ping(ctx, from, dst)
	} else {
		one.Answer, one.Err = askOnce(ctx, from, network, netip.AddrPortFrom(dst, EchoPort))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, one)
}

// SoFar lists all that have an answer or an error, by the time when they began.
func (t *Tries) SoFar() []Try {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Clone(t.all)
	slices.SortFunc(all, func(a, b Try) int { return a.At.Compare(b.At) })
	return all
}

// Stop ends the asking, and with it the questions that are open; it returns SoFar. Stopping twice is
// not an error.
func (t *Tries) Stop() []Try {
	t.stop()
	t.wg.Wait()
	return t.SoFar()
}

// Outage is how long after a moment no question over a network was answered that began then: until the
// first from which on all were, of those that this lists, and how many failed before. Questions after
// the last one that was answered are left out: they were open at the end. It is false if none was
// answered.
func Outage(tries []Try, network string, after time.Time) (d time.Duration, failed int, ended bool) {
	var of []Try
	last := -1
	for _, t := range tries {
		if t.Network != network || t.At.Before(after) {
			continue
		}
		if t.Err == nil {
			last = len(of)
		}
		of = append(of, t)
	}
	if last < 0 {
		return 0, len(of), false
	}
	first := last
	for first > 0 && of[first-1].Err == nil {
		first--
	}
	for _, t := range of[:first] {
		if t.Err != nil {
			failed++
		}
	}
	if first == 0 {
		return 0, 0, true
	}
	return of[first].At.Sub(after), failed, true
}
