package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"multihomed/internal/binder/client"
	"multihomed/internal/binder/wire"
	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/holding"
	"multihomed/internal/news"
	"multihomed/internal/owners"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// A holder serves multihomed-binder, and keeps the DNS servers of bound programs current.
type holder struct {
	parts  *parts
	maps   *holding.Maps
	cfg    config.Config
	server *holding.Server
	fault  func(routing.Code, error)
	// known are the servers that owners know, whenever they change; seen is when they changed last, and is the loop's.
	known *news.Slot[named]
	seen  uint64
	// again asks for one more look.
	again news.Signal
}

// named are the servers of interfaces, and the interfaces of links that bindings name by their profiles.
type named struct {
	dns   *owners.DNS
	links map[string]string
}

func nameLinks(d *owners.DNS, s *reconcile.Snapshot) named {
	n := named{d, map[string]string{}}
	for _, b := range s.Bindings {
		if i, is := s.Interface(b.Index); is {
			n.links[b.LinkName] = i.Facts.Name
		}
	}
	return n
}

// interfaceOf is what the kernel calls a link.
func (n named) interfaceOf(link string) string {
	if name, is := n.links[link]; is {
		return name
	}
	return link
}

func newHolder(s *service, cfg config.Config, p *parts) *holder {
	return &holder{parts: p, maps: s.maps, cfg: cfg, fault: s.fault, known: news.NewSlot[named](), again: news.NewSignal()}
}

// listen makes the socket. Without it `multihomectl run` does not work, and the routing goes on.
func (h *holder) listen() (err error) {
	h.server, err = holding.Listen(h.cfg.RuntimeDir, holding.Options{
		Logger: h.parts.log, Holder: h, Maps: h.maps, Group: h.cfg.Run.Group, Helper: holding.HelperUser,
		Servers:   h.servers,
		Resolvers: func() ([]netip.Addr, error) { return holding.ReadResolvers(holding.ResolvConf) },
		Change: func(ctx context.Context, d wire.DNS, dns *os.File) error {
			return client.Change(ctx, client.DefaultPath, d, dns)
		},
		Kept: h.again.Give,
	})
	return err
}

// stands reports whether the helper finds the socket.
func (h *holder) stands() bool { return h.server == nil || h.server.Stands() }

// afterPass is called by the loop when nothing is left to do.
func (h *holder) afterPass() {
	if now := h.parts.owners.Generation(); now != h.seen && h.maps.Len() > 0 {
		h.put()
	}
}

// put passes on the servers that are known now. It is for the loop's goroutine alone, so that what it puts is never older than
// what it has put.
func (h *holder) put() {
	h.seen = h.parts.owners.Generation()
	h.known.Put(nameLinks(h.parts.owners.DNS(), h.parts.loop.Current()))
}

// run serves until ctx is done.
func (h *holder) run(ctx context.Context) error {
	if h.server == nil {
		return nil
	}
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return h.server.Run(ctx) })
	tasks.Go(func() error {
		return h.known.Follow(ctx, retryEvery, func(ctx context.Context, n named) error {
			err := h.server.Follow(ctx, func(link string) []netip.Addr { return serversIn(n.dns, n.interfaceOf(link)) })
			if ctx.Err() == nil {
				h.fault(boundNamesFault, err)
			}
			return err
		})
	})
	tasks.Go(func() error {
		h.lookAgain(ctx)
		return nil
	})
	return tasks.Wait()
}

// lookAgain looks at the servers once more after a program was bound, because they may have changed meanwhile, and once a minute:
// nobody announces a change of resolv.conf.
func (h *holder) lookAgain(ctx context.Context) {
	unannounced := time.NewTicker(lookEvery)
	defer unannounced.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.again:
		case <-unannounced.C:
		}
		if h.maps.Len() == 0 {
			continue
		}
		if _, err := h.parts.loop.Snapshot(ctx, h.put); err != nil {
			return // It fails only with ctx.
		}
	}
}

// look asks the loop for its snapshot and the servers of that moment.
func (h *holder) look(ctx context.Context) (d *owners.DNS, s *reconcile.Snapshot, err error) {
	s, err = h.parts.loop.Snapshot(ctx, func() { d = h.parts.owners.DNS() })
	if err != nil {
		return nil, nil, fmt.Errorf("asking the loop: %w", err)
	}
	return d, s, nil
}

func (h *holder) servers(ctx context.Context, link string) ([]netip.Addr, bool, error) {
	d, s, err := h.look(ctx)
	if err != nil {
		return nil, false, err
	}
	link = nameLinks(d, s).interfaceOf(link)
	return serversIn(d, link), d.Knows(link), nil
}

// serversIn are the servers of a link, those of IPv4 first.
func serversIn(d *owners.DNS, link string) (all []netip.Addr) {
	for _, f := range routing.Families() {
		all = append(all, d.Of(link)[f].Servers...)
	}
	return all
}

// Hold makes the rules of a link's bound sockets. It refuses what is no link now, unless sockets may be bound to it already: then
// it is down, and nothing leaves.
func (h *holder) Hold(ctx context.Context, link string) (routing.Mark, error) {
	if off, _ := h.parts.off.State(); off.HostOff() {
		return routing.Mark{}, errors.New("multihomed is switched off on this host, so that no rule leads to a link; to fix: multihomectl on")
	}
	_, s, err := h.look(ctx)
	if err != nil {
		return routing.Mark{}, err
	}
	var links []string
	why := ""
	for _, i := range s.Interfaces {
		if i.IsLink {
			links = append(links, i.Facts.Name)
		}
		if i.Facts.Name == link && i.Claimed {
			why = i.Claim.Why
		}
	}
	if !slices.Contains(links, link) && !h.parts.isHeld(link) {
		return routing.Mark{}, noLink(link, why, links)
	}
	return h.parts.hold(ctx, link)
}

// isHeld reports whether sockets may be bound to a link already.
func (p *parts) isHeld(link string) bool {
	_, held := p.bindings.States()
	for _, h := range held {
		if h.Link == link {
			return true
		}
	}
	return false
}

// mostNamed bounds how many links an error names.
const mostNamed = 20

func noLink(link, why string, links []string) error {
	text := fmt.Sprintf("%s is no link now", escape.Text(link))
	if why != "" {
		text += " (" + why + ")"
	}
	slices.SortFunc(links, status.CompareNames)
	more := ""
	if len(links) > mostNamed {
		links, more = links[:mostNamed], " and others"
	}
	if len(links) == 0 {
		return errors.New(text + ", and there is none; to fix: bring one up, then see multihomectl status")
	}
	return errors.New(text + "; to fix: bring it up, or name one of " + escape.Text(strings.Join(links, ", ")) + more)
}
