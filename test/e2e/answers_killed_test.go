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
// and one of the rules, while links go and come and both providers ask a published port without a
// pause. Nothing strays meanwhile, a start brings everything in order, and what removes the product
// leaves nothing of it, whatever state the last kill left. MULTIHOMED_E2E_SEED repeats a sequence.
func TestAnswersKilled(t *testing.T) {
	const rounds, kills = 3, 8
	random := seeded(t)
	p := newPublishing(t, forwards(), "")
	p.start()
	for _, link := range []string{"wan0", "wan1"} {
		_, err := p.WaitAddr(t.Context(), link, lab.IPv6)
		p.must(err)
	}
	p.inOrder("before")
	p.kill9()
	asked := p.ask()

	for round := range rounds {
		stop := make(chan struct{})
		var happened []string
		var links sync.WaitGroup
		links.Go(func() { happened = p.links(rand.New(rand.NewPCG(random.Uint64(), 0)), stop) })
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
		links.Wait()
		p.up("wan0", "wan1")
		p.strays(fmt.Sprintf("in round %d, with %v", round, happened))
		if round == rounds-1 {
			break
		}
		p.start()
		p.inOrder(fmt.Sprintf("after round %d, with %v", round, happened))
		if round == 0 {
			p.must(p.daemon.Stop(t.Context()))
			p.flush()
			p.launch()
			p.ready()
			p.inOrder("after a flush")
			// A flush takes away what keeps answers where they belong.
			p.afresh()
		}
		p.kill9()
	}
	if n := asked(); n < rounds*kills {
		t.Errorf("only %d questions were answered", n)
	}
	p.purged()
}

// links does to links what their administrator and their cables do, until it is told to stop.
func (p *publishing) links(random *rand.Rand, stop <-chan struct{}) (happened []string) {
	for {
		select {
		case <-stop:
			return happened
		default:
		}
		isp := p.isps[random.IntN(len(p.isps))]
		link := isp.Link().Name()
		// What fails does so because the link is on its way elsewhere.
		switch random.IntN(4) {
		case 0:
			happened = append(happened, link+" disconnected")
			_, _ = p.NMCLI(p.t.Context(), "-w", "5", "device", "disconnect", link)
		case 1:
			happened = append(happened, link+" without carrier")
			_ = isp.Link().SetCarrier(false)
			_ = isp.Link().SetCarrier(true)
		default:
			happened = append(happened, link+" up")
			_, _ = p.NMCLI(p.t.Context(), "-w", "5", "connection", "up", link)
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
					addrs, err := p.Addrs(isp.Link().Name(), f)
					if err != nil || len(addrs) == 0 {
						time.Sleep(time.Millisecond)
						continue
					}
					call := isp.Call
					if udp {
						call = isp.CallUDP
					}
					one, done := context.WithTimeout(ctx, lab.Stretched(50*time.Millisecond))
					if _, err := call(one, client, addrs[0].Addr()); err == nil {
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
	p.eventually(p.planned)
	p.marks(lab.IPv4, 2)
	p.marks(lab.IPv6, 2)
	p.asked(when, lab.IPv4, lab.IPv6)
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
