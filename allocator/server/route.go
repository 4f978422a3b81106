package server

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strconv"
	"time"

	"multihomed/allocator/wire"
	"multihomed/internal/event"
)

// routeTimeout bounds how long a client's request waits for the routing loop,
// which is done in milliseconds unless the kernel or the disk hangs.
const routeTimeout = 5 * time.Second

// startRoute does a request for routing in a goroutine of its own.
func (s *Server) startRoute(ctx context.Context, j job) *wire.Error {
	address, err := netip.ParseAddr(j.request.Address)
	if err != nil {
		return &wire.Error{Code: wire.BadFamily, Text: "only addresses can be routed; to fix: ask for family ipv4 or ipv6, or without routing"}
	}
	select {
	case s.routes <- struct{}{}:
	default:
		return busy("too many addresses are being routed")
	}
	s.routing.Go(func() {
		defer func() { <-s.routes }()
		ctx, cancel := context.WithTimeout(ctx, routeTimeout)
		defer cancel()
		if err := s.route(ctx, j, address); err != nil {
			s.refuse(ctx, j, refusal(err))
		}
	})
	return nil
}

func (s *Server) route(ctx context.Context, j job, address netip.Addr) error {
	r := Route{Interface: j.request.Interface, Address: address, Tag: j.request.Tag, Owner: j.uid}
	answer := wire.Response{Version: j.request.Version, Transaction: j.request.Transaction, Routing: true}
	attrs := []slog.Attr{
		slog.String("interface", r.Interface), slog.String("address", address.String()), slog.Uint64("uid", uint64(j.uid)),
	}
	if j.request.Command == wire.Release {
		found, err := s.Router.Unroute(ctx, r)
		if err != nil {
			return err
		}
		if found {
			s.Logger.LogAttrs(ctx, slog.LevelInfo, "routed lease released", append(attrs, event.Is(event.LeaseEnded))...)
		}
		s.send(ctx, j, answer)
		return nil
	}
	if j.request.Hold {
		r.Expires = (s.Uptime() + s.Lifetime).Round(time.Second)
		answer.Expires, answer.Lifetime = seconds(r.Expires), seconds(s.Lifetime)
	}
	table, err := s.Router.Route(ctx, r)
	if errors.Is(err, context.DeadlineExceeded) {
		return busy("the routing is not in force yet")
	}
	if err != nil {
		return err
	}
	answer.Table = table
	s.send(ctx, j, answer)
	return nil
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
