package main

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// protocolBGP is RTPROT_BGP of linux/rtnetlink.h.
const protocolBGP = 186

// foreignLink is the interface that the foreign routes lead through. Nobody
// calls it a link.
const foreignLink = "foreign0"

// foreignRoutes measures the cost of a full routing table of another program.
func (b *bench) foreignRoutes(ctx context.Context) (*Foreign, error) {
	f := &Foreign{Routes: b.foreign}
	var err error
	before := clockOf(b.daemon.Pid())
	if err := pause(ctx, rest); err != nil {
		return nil, err
	}
	if f.Before, err = memoryOf(b.daemon.Pid()); err != nil {
		return nil, err
	}
	cable, err := b.host.NewLink(lab.LinkConfig{Name: foreignLink, Up: true})
	if err != nil {
		return nil, err
	}
	index, err := cable.Index()
	if err != nil {
		return nil, err
	}
	if _, err := b.settled(ctx, nothing); err != nil {
		return nil, err
	}
	cpu, err := before.read()
	if err != nil {
		return nil, err
	}

	begin := time.Now()
	peak := f.Before
	const chunk = 400
	messages := make([]message, 0, chunk)
	for n := range b.foreign {
		messages = append(messages, message{
			kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, payload: route{
				dst:   netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + n>>16), byte(n >> 8), byte(n), 0}), 24),
				index: index, metric: 20, protocol: protocolBGP,
			}.payload(),
		})
		if len(messages) < chunk && n < b.foreign-1 {
			continue
		}
		if err := b.send.batched(messages); err != nil {
			return nil, err
		}
		messages = messages[:0]
		if n%(64*chunk) == chunk-1 {
			m, err := memoryOf(b.daemon.Pid())
			if err != nil {
				return nil, err
			}
			peak.RSS, peak.Private = max(peak.RSS, m.RSS), max(peak.Private, m.Private)
		}
	}
	f.Adding = time.Since(begin).Seconds()
	if _, err := b.settled(ctx, nothing); err != nil {
		return nil, err
	}
	f.Settled = time.Since(begin).Seconds()
	after, err := before.read()
	if err != nil {
		return nil, err
	}
	f.CPU = (after - cpu).Seconds()
	f.Peak = peak
	if err := pause(ctx, rest); err != nil {
		return nil, err
	}
	if f.After, err = memoryOf(b.daemon.Pid()); err != nil {
		return nil, err
	}
	b.progress("explain among foreign routes")
	if f.Explain, err = b.explained(ctx); err != nil {
		return nil, err
	}
	b.progress("the foreign routes stand: one link's changes")
	if f.Change, err = b.change(ctx); err != nil {
		return nil, err
	}
	b.progress("starts among foreign routes")
	var again []time.Duration
	for range b.starts {
		if err := b.stop(ctx); err != nil {
			return nil, err
		}
		_, took, err := b.start(ctx)
		if err != nil {
			return nil, err
		}
		again = append(again, took)
		if _, err := b.settled(ctx, nothing); err != nil {
			return nil, err
		}
	}
	f.Again = series(again)
	if err := pause(ctx, rest); err != nil {
		return nil, err
	}
	if f.Restarted, err = memoryOf(b.daemon.Pid()); err != nil {
		return nil, err
	}
	if err := cable.Delete(); err != nil {
		return nil, err
	}
	_, err = b.settled(ctx, nothing)
	return f, err
}

func nothing([]event) error { return nil }
