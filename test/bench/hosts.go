package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Hosts is what many host addresses (/32) on one uplink cost.
type Hosts struct {
	Addresses int `json:"addresses"`
	// Rules and Routes are what the daemon makes of them, Tables how many tables
	// serve them.
	Rules  int `json:"rules"`
	Routes int `json:"routes"`
	Tables int `json:"tables"`
	// Daemon is from the first address to the last rule, with all addresses
	// added at once; Batched and IP are the same objects made by others.
	Daemon  Series `json:"daemon"`
	CPU     Series `json:"cpu"`
	Batched Series `json:"batched"`
	IP      Series `json:"ip"`
	Before  Memory `json:"before"`
	After   Memory `json:"after"`
}

// hostAddresses measures many host addresses on one uplink of two.
func (b *bench) hostAddresses(ctx context.Context, report *Report) error {
	return b.withFakeOwner(ctx, func() error {
		if err := b.grow(ctx, 2); err != nil {
			return err
		}
		b.progress("%d host addresses on one uplink", b.hosts)
		if _, _, err := b.start(ctx); err != nil {
			return err
		}
		if _, err := b.settled(ctx, func(events []event) error { return whole(2, events) }); err != nil {
			return err
		}
		h, err := b.manyAddresses(ctx, b.links[0])
		if err != nil {
			return fmt.Errorf("with %d host addresses: %w", b.hosts, err)
		}
		report.Hosts = h
		return b.stop(ctx)
	})
}

func (b *bench) manyAddresses(ctx context.Context, l link) (*Hosts, error) {
	h := &Hosts{Addresses: b.hosts}
	come, leave := make([]message, 0, b.hosts), make([]message, 0, b.hosts)
	for n := range b.hosts {
		p := addressPayload(l.index, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), 32))
		come = append(come, message{kind: unix.RTM_NEWADDR, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, payload: p})
		leave = append(leave, message{kind: unix.RTM_DELADDR, payload: p})
	}
	var err error
	if h.Before, err = b.held(ctx); err != nil {
		return nil, err
	}
	daemon := clockOf(b.daemon.Pid())
	batch := filepath.Join(b.dir, "hosts.batch")
	var goal map[string]int
	var messages []message
	var all, cpu, batched, ip []time.Duration
	for round := range b.starts {
		before, err := daemon.read()
		if err != nil {
			return nil, err
		}
		b.watch.reset()
		begin := time.Now()
		if err := b.send.batched(come); err != nil {
			return nil, err
		}
		events, err := b.settled(ctx, func(events []event) error {
			if served, _ := servedBy(events); served < b.hosts {
				return fmt.Errorf("%d of %d addresses have their rules", served, b.hosts)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		after, err := daemon.read()
		if err != nil {
			return nil, err
		}
		all, cpu = append(all, last(events).Sub(begin)), append(cpu, after-before)
		if round == 0 {
			goal, messages = standing(events), replay(events)
			_, h.Tables = servedBy(events)
			for _, m := range messages {
				if m.kind == unix.RTM_NEWRULE {
					h.Rules++
				} else {
					h.Routes++
				}
			}
			if h.After, err = b.held(ctx); err != nil {
				return nil, err
			}
			if err := batchFile(batch, messages, b.names); err != nil {
				return nil, err
			}
		}
		b.watch.reset()
		if err := b.send.batched(leave); err != nil {
			return nil, fmt.Errorf("taking the addresses away: %w", err)
		}
		if _, err := b.settled(ctx, rules(unix.RTM_DELRULE, h.Rules)); err != nil {
			return nil, err
		}
		if err := b.freeze(ctx); err != nil {
			return nil, err
		}
		for _, other := range []struct {
			times *[]time.Duration
			do    func() error
		}{
			{&batched, func() error { return b.send.batched(messages) }},
			{&ip, func() error { return runBatch(ctx, batch) }},
		} {
			b.watch.reset()
			begin := time.Now()
			if err := b.send.batched(come); err != nil {
				return nil, err
			}
			if err := other.do(); err != nil {
				return nil, err
			}
			events, err := b.settled(ctx, holds(goal))
			if err != nil {
				return nil, err
			}
			*other.times = append(*other.times, last(events).Sub(begin))
			if err := b.send.batched(append(undo(messages), leave...)); err != nil {
				return nil, fmt.Errorf("taking the rules away: %w", err)
			}
			if _, err := b.settled(ctx, nothing); err != nil {
				return nil, err
			}
		}
		if err := b.thaw(ctx); err != nil {
			return nil, err
		}
	}
	h.Daemon, h.CPU, h.Batched, h.IP = series(all), series(cpu), series(batched), series(ip)
	return h, nil
}

// ruleOf reads the source, the priority and the table of a rule.
func ruleOf(payload []byte) (source []byte, priority, table uint32) {
	eachAttribute(payload[ruleHeaderSize:], func(kind uint16, v []byte) {
		switch kind {
		case fraSrc:
			source = bytes.Clone(v)
		case fraPriority:
			priority = binary.NativeEndian.Uint32(v)
		case fraTable:
			table = binary.NativeEndian.Uint32(v)
		}
	})
	return source, priority, table
}

// Priorities of rules that the bench looks for or makes.
const (
	priorityDevice      = 9500
	prioritySource      = 10000
	priorityUnreachable = 10500
)

// servedBy counts the addresses whose rules are all there, and the tables that
// serve them.
func servedBy(events []event) (addresses, tables int) {
	have := map[string]int{}
	leadTo := map[uint32]bool{}
	for _, m := range replay(events) {
		if m.kind != unix.RTM_NEWRULE {
			continue
		}
		source, priority, table := ruleOf(m.payload)
		if source == nil {
			continue
		}
		have[string(source)]++
		if priority == prioritySource {
			leadTo[table] = true
		}
	}
	for _, n := range have {
		if n >= perSource {
			addresses++
		}
	}
	return addresses, len(leadTo)
}

func printHosts(out io.Writer, h *Hosts) {
	if h == nil {
		return
	}
	table(out, fmt.Sprintf("%d host addresses (/32) come to one uplink at once, until every one has its rules", h.Addresses),
		"tables\trules\troutes\tdaemon\tbatched\tip -batch\tdaemon/batched\tdaemon/ip\tdaemon CPU\tRSS MB before\tafter", func(line func(...any)) {
			line(h.Tables, h.Rules, h.Routes, h.Daemon, h.Batched, h.IP, times(h.Daemon.Median, h.Batched.Median), times(h.Daemon.Median, h.IP.Median),
				h.CPU, mb(h.Before.RSS), mb(h.After.RSS))
		})
}
