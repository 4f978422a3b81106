package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"multihomed/test/lab"
)

// TestAnswersKilled kills the daemon at random moments, many of them between a change of the table
// and one of the rules, while a link goes and comes and both providers ask a published port without a
// pause. What has the address of the link that stays never strays; of an address that comes while no
// daemon is there, nobody knows yet. A start brings everything in order, and what removes the
// product leaves nothing of it, whatever state the last kill left. MULTIHOMED_E2E_SEED repeats a
// sequence.
func TestAnswersKilled(t *testing.T) {
	const kills = 8
	random := seeded(t)
	p := newPublishing(t, forwards(), "")
	p.start()
	p.inOrder("before")
	asked := p.ask()

	const nobody = -1
	rounds := []int{nobody, 0, 1}
	for round, moves := range rounds {
		p.kill9()
		stop := make(chan struct{})
		var happened []string
		var link sync.WaitGroup
		if moves != nobody {
			chance := rand.New(rand.NewPCG(random.Uint64(), 0))
			link.Go(func() { happened = p.moves(p.isps[moves].Link(), chance, stop) })
		}
		for range kills {
			p.launch()
			if random.IntN(3) > 0 {
				p.ready()
			}
			moment := time.NewTimer(time.Duration(random.Int64N(int64(200 * time.Millisecond))))
			select {
			case <-moment.C:
			case <-p.daemon.Done():
				t.Fatalf("it ended by itself:\n%s", p.daemon.Log())
			}
			p.kill9()
		}
		close(stop)
		link.Wait()
		when := fmt.Sprintf("in round %d, with %v", round, happened)
		for n := range p.isps {
			if n != moves {
				p.straysOf(n, when)
			}
		}
		if round == len(rounds)-1 {
			break
		}
		for _, link := range []string{"wan0", "wan1"} {
			// NetworkManager may not have seen yet that the cable is in again.
			p.eventually(func() error { return p.Up(t.Context(), link) })
		}
		p.start()
		p.inOrder("after round " + fmt.Sprint(round))
	}
	if n := asked(); n < int64(len(rounds)*kills) {
		t.Errorf("only %d questions were answered", n)
	}
	p.purged()
}

// moves does to a link what its administrator and its cable do, until it is told to stop.
func (p *publishing) moves(link *lab.Link, random *rand.Rand, stop <-chan struct{}) (happened []string) {
	for {
		select {
		case <-stop:
			return happened
		default:
		}
		// What fails does so because the link is on its way elsewhere.
		switch random.IntN(4) {
		case 0:
			happened = append(happened, "disconnected")
			_, _ = p.NMCLI(p.t.Context(), "-w", "5", "device", "disconnect", link.Name())
		case 1:
			happened = append(happened, "without carrier")
			_ = link.SetCarrier(false)
			_ = link.SetCarrier(true)
		default:
			happened = append(happened, "up")
			_, _ = p.NMCLI(p.t.Context(), "-w", "5", "connection", "up", link.Name())
		}
	}
}

// ask lets both providers ask all addresses of the host until the end of the test, and returns what
// ends that and says how often they were answered.
func (p *publishing) ask() (end func() int64) {
	ctx, cancel := context.WithCancel(p.t.Context())
	p.t.Cleanup(cancel)
	var askers sync.WaitGroup
	var answered atomic.Int64
	for _, isp := range p.isps {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			client := isp.Client4
			if f == lab.IPv6 {
				client = isp.Client6
			}
			askers.Go(func() {
				for udp := false; ctx.Err() == nil; udp = !udp {
					at, err := p.WaitAddr(ctx, isp.Link().Name(), f)
					if err != nil {
						continue
					}
					call := isp.Call
					if udp {
						call = isp.CallUDP
					}
					one, done := context.WithTimeout(ctx, lab.Stretched(50*time.Millisecond))
					if _, err := call(one, client, at); err == nil {
						answered.Add(1)
					}
					done()
				}
			})
		}
	}
	return func() int64 {
		cancel()
		askers.Wait()
		return answered.Load()
	}
}

// inOrder wants the table, the rules and the answers of a host with both links up.
func (p *publishing) inOrder(when string) {
	p.t.Helper()
	for _, link := range []string{"wan0", "wan1"} {
		_, err := p.WaitAddr(p.t.Context(), link, lab.IPv6)
		p.must(err)
	}
	p.marks(lab.IPv4, 2)
	p.marks(lab.IPv6, 2)
	p.eventually(p.planned)
	p.afresh()
	for range 3 {
		p.asked(when, lab.IPv4, lab.IPv6)
	}
	p.strays(when)
}

// purged does what a purge of the package does to a host whose daemon was killed (multihomed.prerm
// and multihomed.postrm), and wants nothing to be left.
func (p *publishing) purged() {
	p.t.Helper()
	p.flush()
	p.must(errors.Join(os.RemoveAll(p.cfg.StateDir), os.RemoveAll(p.cfg.RuntimeDir), os.Remove(p.path)))
	left, err := p.Leftovers()
	p.must(err)
	if len(left) > 0 || p.table() != "" {
		p.t.Errorf("a purge leaves %q and\n%s", left, p.table())
	}
}
